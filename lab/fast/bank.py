"""lab.fast.bank"""
