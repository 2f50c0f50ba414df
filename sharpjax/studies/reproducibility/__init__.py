"""Paper 4: does registration keep what it promises? (arXiv 2510.11595)"""
