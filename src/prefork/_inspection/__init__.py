"""How a pool is asked from outside what it does, and who may.

asking ─► a socket ─► endpoint, in the pool's process ─► its engine's answer
    questions         what both sides know: names, texts, bytes
"""
