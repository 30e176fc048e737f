"""Calls to an endpoint from the command line, in full view: what `check` and `bench` are made of.

`probe_client` makes one call and says what its failure means; `probes` are the small calls that `check` makes;
`examination` draws conclusions from them; `bench_load` makes the calls of `bench`. Blocking sockets and http.client:
what is learned here depends on nothing that the gateway's own relaying does.
"""
