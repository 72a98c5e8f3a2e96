"""Cloud routes: the provider's own route table leads each host's subnet to it, and packets travel as they are.

`provider` is what is asked of a provider, one folder each (`aws`, `ali`, `gce`, `tencent`); `backend` and `network`
are the seam's two halves for all of them; `keeper` looks at the tables and puts them right, by decisions that are pure
(`plan`).
"""
