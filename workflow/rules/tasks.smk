# Tasks of lm-evaluation-harness, where the scale asks for them.
if graph.task_scores():

    rule score_reference_tasks:
        input:
            code=code.of("score_tasks"),
            digests=[f"{results}/{{kind}}/{{name}}/model.sha256", f"{results}/data/tokenizer.sha256"],
            files=graph.task_files(),
            model=ancient(f"{results}/{{kind}}/{{name}}/model"),
            tokenizer=ancient(f"{results}/data/tokenizer"),
        output:
            out=f"{results}/{{kind}}/{{name}}/lm_eval.json",
        log:
            f"{results}/logs/score_reference_tasks/{{kind}}_{{name}}.log",
        benchmark:
            f"{results}/benchmarks/score_reference_tasks/{{kind}}_{{name}}.tsv"
        wildcard_constraints:
            kind="teachers|students",
            name="[^/]+",
        conda:
            "../../environment.yml"
        threads: scale_config.threads.evaluation
        resources:
            gpu=1,
        params:
            options=options.as_json(graph, options.score_tasks(graph)),
            outside=graph.outside.identity(graph.task_files()),
        message:
            "Scoring {wildcards.kind}/{wildcards.name} on tasks of lm-evaluation-harness"
        shell:
            stage_command("score_tasks", input=["model", "tokenizer", "files"], output=["out"], params=["options"])

    use rule score_reference_tasks as score_tasks with:
        input:
            code=code.of("score_tasks"),
            digests=[
                f"{results}/cells/{{cell}}/compressed/{{variant}}/model.sha256",
                f"{results}/data/tokenizer.sha256",
            ],
            files=graph.task_files(),
            model=ancient(f"{results}/cells/{{cell}}/compressed/{{variant}}/model"),
            tokenizer=ancient(f"{results}/data/tokenizer"),
        output:
            out=f"{results}/cells/{{cell}}/compressed/{{variant}}/lm_eval.json",
        log:
            f"{results}/logs/score_tasks/{{cell}}_{{variant}}.log",
        benchmark:
            f"{results}/benchmarks/score_tasks/{{cell}}_{{variant}}.tsv"
        params:
            options=lambda wildcards: options.as_json(graph, options.score_tasks(graph, wildcards.cell)),
            outside=graph.outside.identity(graph.task_files()),
        message:
            "Scoring {wildcards.cell} on tasks of lm-evaluation-harness"
