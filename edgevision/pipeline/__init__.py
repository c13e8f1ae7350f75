"""The rooms put together: one function for each way through the house."""
