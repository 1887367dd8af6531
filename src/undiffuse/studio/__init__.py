"""The studio: a web page on this computer to sample, guide, edit, train and look at data.

`settings` and `jobs` hold what is chosen on the page; `snippets` turn it into commands and Python, `links` into links.
The networks run in processes of their own (`worker`, driven by `processes`), which do the work in `work`. `sessions`
keep what each open page has made and watched (`paths`), `runs` start and watch trainings. None of these knows Gradio;
`app`, `page`, `form`, `watching`, `restored` and `tabs` draw the page with it, and are imported by the command only.
"""
