"""The status page: what it shows, how that is kept up to date, and its own HTML, CSS and script.

Who may see it is `access`'; its URLs are `status`'.
"""
