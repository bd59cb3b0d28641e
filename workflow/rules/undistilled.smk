# What was compressed without being distilled is scored alone: the trained student beside it is another one.


ruleorder: score_undistilled > score_cell


rule score_undistilled:
    input:
        code=source_files("evaluate"),
        digests=[
            f"{results}/cells/{{cell}}/compressed/{{settings}}/model.sha256",
            f"{results}/data/validation.json",
            f"{results}/data/functions.json",
            f"{results}/data/tokenizer.sha256",
        ],
        probes=graph.probe_files(),
        model=ancient(f"{results}/cells/{{cell}}/compressed/{{settings}}/model"),
        manifest=ancient(f"{results}/data/manifest.json"),
        tokenizer=ancient(f"{results}/data/tokenizer"),
    output:
        perplexity=f"{results}/cells/{{cell}}/compressed/{{settings}}/perplexity.json",
        windows=f"{results}/cells/{{cell}}/compressed/{{settings}}/perplexity_windows.parquet",
    log:
        f"{results}/logs/score_undistilled/{{cell}}_{{settings}}.log",
    benchmark:
        f"{results}/benchmarks/score_undistilled/{{cell}}_{{settings}}.tsv"
    wildcard_constraints:
        settings="|".join(map(re.escape, graph.undistilled())) or "none",
    conda:
        "../../environment.yml"
    threads: settings.threads.evaluation
    resources:
        gpu=1,
    params:
        values=graph.evaluation(),
        folder=lambda wildcards, output: dirname(output.perplexity),
        data=lambda wildcards, input: dirname(input.manifest),
        device=settings.device,
        threads=settings.threads.evaluation,
        scale=scale,
    shell:
        "budgeted-lora stage evaluate --values {params.values:q} --model {input.model} --cell {wildcards.cell}"
        " --tokens {params.data} --tokenizer {input.tokenizer} --out {params.folder} --scale {params.scale}"
        " --threads {params.threads} --device {params.device} --no-icl 2>&1 | tee {log}"
