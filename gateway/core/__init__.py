"""The sans-IO core: bytes, values and `now` come in, values go out. No asyncio, no clock, no logging in here."""
