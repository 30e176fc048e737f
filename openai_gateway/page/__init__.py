"""The status page: what it shows, how that is kept up to date, and its own HTML, CSS and script.

`status` serves its URLs to whom `access` lets in; `feed` makes a view a second of a snapshot, by way of `view`.
"""
