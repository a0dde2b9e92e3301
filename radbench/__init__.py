"""RadBench: what a radiology vision-language model can do, in the paper's five tasks, with baselines and intervals.

Data goes one way: records (`medmd`) → items (`draw`) → predictions (`run`) → scores → report.
"""
