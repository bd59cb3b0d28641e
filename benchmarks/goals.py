"""The table of goals: what each row compares, what it must reach, and what it should."""

from benchmarks.measures import Goal

TITLES = {
    1: "Training step, teacher online, against Trainer + PEFT with a plain KD loss",
    2: "The same, ours with cached teacher states",
    3: "KD + CE loss alone, forward and backward",
    4: "F = 0 after its schedule against KD Full, student side only",
    5: "MACs executed over a whole run against the scheduled proxy",
    6: "Compressed modules against dense",
    7: "Whole compressed student against the dense one",
    8: "Forward pass (scoring, teacher cache) against transformers' own",
    9: "Tokens/s of one training at mini against another commit",
    10: "`snakemake main` at mini from nothing against another commit",
    11: "No-op `snakemake`, start of a job, `plan`",
}

# Goals hold at the paper's width, except rows 9 to 11, which have one shape.
STEP = {
    ("online", "kd_full"): Goal(at_least=1.4, aim=1.6),
    ("online", "kd_lora"): Goal(at_least=1.5, aim=2.0),
    ("cached", "kd_full"): Goal(at_least=1.9, aim=2.4),
    ("cached", "kd_lora"): Goal(at_least=2.3, aim=2.9),
}
LOSS_TIME = Goal(at_least=1.2, aim=1.5)
LOSS_BUFFERS = Goal(at_least=2.0, aim=2.0, better="lower")
AFTER_SCHEDULE = Goal(at_least=0.45, aim=0.42, better="lower")
EXECUTED = Goal(at_least=1.02, aim=1.01, better="lower")
MODULES = {1: Goal(at_least=3.0, aim=3.8), 1024: Goal(at_least=3.8, aim=4.0), 4096: Goal(at_least=3.6, aim=3.9)}
STUDENTS = {
    "prefill, all logits": Goal(at_least=1.8, aim=2.0),
    "prefill, last logit": Goal(at_least=2.5, aim=3.0),
    "decode, batch 1": Goal(at_least=1.9, aim=2.4),
}
FORWARD = Goal(at_least=1.2, aim=1.5)
TRAINING = Goal(at_least=2.0, aim=3.0)
WHOLE_RUN = Goal(at_least=0.6, aim=0.45, better="lower")
STARTS = {
    "no-op": Goal(at_least=3.0, aim=2.0, better="lower"),
    "job": Goal(at_least=2.0, aim=1.2, better="lower"),
    "plan": Goal(at_least=0.5, aim=0.3, better="lower"),
}
