"""The wire and storage contract `treadle.v1`: generated from the .proto files beside this one."""
