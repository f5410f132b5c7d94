"""Teachers behind any OpenAI-compatible endpoint: asked politely, once, and for no more than allowed.

`client.py`     Served: the one thing callers use; answers and scores, synchronously
`endpoint.py`   Endpoint: address, key, limits and prices; hides the key
`answer.py`     Request, Answer, Token, Alternative, Estimate: what goes in and what comes back
`probe.py`      Capabilities: what this endpoint can do, found by asking it
`journal.py`    Journal: every answer and its cost, once, through any crash
`child.py`      ServerProcess: a server that we start, and that ends with us
`faults.py`     Fault: what can go wrong with a reply, and whether to try again
"""
