# Budgeted LoRA, regenerated: from a corpus to the paper's tables and figures.
#
#   snakemake --cores all --resources gpu=2                 everything, at the scale "mini"
#   snakemake table2 figure2                                only those
#   snakemake --config scale=smoke                          another scale: a file of config/
#   snakemake --config teachers=pretrain                    any top-level key of the scale, laid on top
#   snakemake --config scale=paper fit=warn                 start although the machine is too small by the plan
#
# Rule `train_cell` calls the function `train_cell` of src/budgeted_lora/stages/train_cell.py, and so on. File lists
# come from workflow/graph.py there, options of the stages from workflow/options.py.
import re
import sys
from os.path import dirname

from snakemake.utils import min_version

from budgeted_lora.config.scale import DEFAULT_VARIANT, MAIN_CELLS
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.contents import ICL_TABLES, PARETO
from budgeted_lora.workflow import options
from budgeted_lora.workflow.code import CodeFiles, job_prefix, refuse_another_package
from budgeted_lora.workflow.curves import offer_curves
from budgeted_lora.workflow.graph import load_graph, token_files
from budgeted_lora.planning.start import refuse_missing_corpus, refuse_unknown_targets, refuse_what_cannot_fit
from budgeted_lora.workflow.runs import begin_run, is_at_work, join_run, refuse_a_clock_set_back, what_runs
from budgeted_lora.workflow.slurm import job_name
from budgeted_lora.workflow.stage_command import stage_command, stage_names
from budgeted_lora.workflow.report import ReportJobs

min_version("9.0")

PUBLISHED, CLAIMS = "config/published.csv", "config/claims.yaml"
try:
    refuse_another_package(workflow.basedir)
    scale = config.get("scale", "mini")
    overrides = {key: value for key, value in config.items() if key != "scale"}
    graph = load_graph(f"config/{scale}.yaml", overrides)
    refuse_a_clock_set_back(graph.results)
    join_run("Snakemake of a job")  # only where a batch system started this one
    offer_curves(graph.config, graph.results)
    report_jobs = ReportJobs(graph)
    code = CodeFiles(graph.results)
    modules = [*(f"stages.{stage}" for stage in stage_names()), *report_jobs.makers()]
    code.write(modules, missing_only=is_at_work(graph.results))  # a run keeps the digests that it was planned with
    graph.outside.learn([*graph.outside_files(), PUBLISHED, CLAIMS, *report_jobs.templates()])
except BadInput as error:
    print(f"budgeted-lora: {error}", file=sys.stderr)
    sys.exit(2)

shell.prefix(job_prefix())

scale_config = graph.config
results, reports = graph.results, graph.reports


wildcard_constraints:
    cell="|".join(map(re.escape, graph.cells)) or "none",
    teacher="|".join(map(re.escape, graph.teachers)),
    student="|".join(map(re.escape, graph.students)),
    variant="|".join(map(re.escape, graph.variants)),
    cache="|".join(map(re.escape, graph.caches())) or "none",
    structure="|".join(map(re.escape, graph.timed())) or "none",


report: "workflow/report/workflow.rst"


onstart:
    if not workflow.touch:
        targets = workflow.dag_settings.targets
        refuse_what_cannot_fit(graph, targets=targets, remote=not workflow.local_exec)
    begin_run(results, slurm=job_name(workflow), about=what_runs(workflow, overrides))


# Here and not among the other targets: Snakemake takes the default target from this file alone.
rule all:
    default_target: True
    input:
        f"{reports}/index.html",
        f"{reports}/contents/all.json",
    message:
        f"Report of scale {scale} with all its tables: {reports}/index.html"


include: f"workflow/rules/{'shards' if scale_config.corpus.shards else 'data'}.smk"
include: "workflow/rules/tokenizer.smk"
include: "workflow/rules/teachers.smk"
include: "workflow/rules/students.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/compress.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tasks.smk"
include: "workflow/rules/speed.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/targets.smk"


refuse_unknown_targets(graph, {rule.name for rule in workflow.rules})
refuse_missing_corpus(graph)
