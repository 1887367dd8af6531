(() => {
  // Draws charts that arrive with a new state of the page.
  const watch = () => {
    window.drawCharts(document);
    new MutationObserver(() => window.drawCharts(document)).observe(document.body, { childList: true, subtree: true });
  };
  if (document.body) watch(); else document.addEventListener("DOMContentLoaded", watch);
  // Ctrl+Enter presses the button of the open tab, Escape its Stop.
  const visible = (kind) => [...document.querySelectorAll(`button.${kind}, .${kind} button`)]
    .find((button) => button.offsetParent !== null && !button.disabled);
  document.addEventListener("keydown", (event) => {
    const kind = event.key === "Enter" && (event.ctrlKey || event.metaKey) ? "go" : event.key === "Escape" ? "stop" : null;
    const button = kind && visible(kind);
    if (!button || (kind === "stop" && event.defaultPrevented)) return;
    if (kind === "go") event.preventDefault();
    button.click();
  });
})();
