"""What goes over the network between an ingress (out=dyn://) and its workers (in=dyn://), as NVIDIA Dynamo speaks it.

Addresses, records, discovery (etcd or a shared folder), frames, request planes (TCP, NATS), the call-home response
plane. Knows nothing of engines, pipelines or HTTP APIs.
"""
