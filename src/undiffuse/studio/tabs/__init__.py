"""The tabs of the page, a module each; `build(page)` draws one and connects its controls."""
