# A large corpus: one job a shard, then one that joins them. What a shard's file is called is in shards.py.

shards = graph.shard_jobs()


wildcard_constraints:
    shard="|".join(shards.names),


if shards.downloaded:

    rule fetch_shard:
        input:
            code=source_files("fetch-shard"),
        output:
            file=shards.download_name(),
            record=f"{shards.folder}/{{shard}}/source.json",
        log:
            f"{results}/logs/fetch_shard/{{shard}}.log",
        benchmark:
            f"{results}/benchmarks/fetch_shard/{{shard}}.tsv"
        retries: 2
        conda:
            "../../environment.yml"
        params:
            values=lambda wildcards: shards.fetch_values(wildcards.shard),
            downloads=f"{shards.folder}/.downloads/{{shard}}",
            scale=scale,
        shell:
            "budgeted-lora stage fetch-shard --values {params.values:q} --out {output.file} --record {output.record}"
            " --downloads {params.downloads} --scale {params.scale} 2>&1 | tee {log}"


rule tokenize_shard:
    input:
        code=source_files("tokenize-shard"),
        digests=[
            f"{results}/data/tokenizer.sha256",
            *([f"{shards.folder}/{{shard}}/source.json"] if shards.downloaded else []),
        ],
        tokenizer=ancient(f"{results}/data/tokenizer"),
        downloaded=ancient([shards.download_name()] if shards.downloaded else []),
        local=lambda wildcards: shards.local_files(wildcards.shard),
    output:
        train=multiext(f"{shards.folder}/{{shard}}/train", ".bin", ".idx", ".json"),
        held_out=multiext(
            f"{shards.folder}/{{shard}}/held_out", ".bin", ".idx", ".json"
        ),
        digests=f"{shards.folder}/{{shard}}/digests.bin",
        record=f"{shards.folder}/{{shard}}/shard.json",
    log:
        f"{results}/logs/tokenize_shard/{{shard}}.log",
    benchmark:
        f"{results}/benchmarks/tokenize_shard/{{shard}}.tsv"
    conda:
        "../../environment.yml"
    params:
        values=lambda wildcards: shards.values(wildcards.shard),
        source=lambda wildcards: shards.source(wildcards.shard),
        folder=lambda wildcards, output: dirname(output.record),
        scale=scale,
    shell:
        "budgeted-lora stage tokenize-shard --values {params.values:q} --source {params.source:q}"
        " --tokenizer {input.tokenizer} --out {params.folder} --scale {params.scale} 2>&1 | tee {log}"


rule join_shards:
    input:
        code=source_files("join-shards"),
        records=shards.records(),
        tokens=ancient(shards.tokens()),
    output:
        tokens=multiext(f"{results}/data/train", ".bin", ".idx", ".json"),
        held_out=multiext(f"{results}/data/validation", ".bin", ".idx", ".json"),
        functions=multiext(f"{results}/data/functions", ".bin", ".idx", ".json"),
        manifest=f"{results}/data/manifest.json",
    log:
        f"{results}/logs/join_shards.log",
    benchmark:
        f"{results}/benchmarks/join_shards.tsv"
    conda:
        "../../environment.yml"
    params:
        values=shards.join_values(),
        shards=lambda wildcards, input: dirname(dirname(input.records[0])),
        folder=lambda wildcards, output: dirname(output.manifest),
        scale=scale,
    shell:
        "budgeted-lora stage join-shards --values {params.values:q} --shards {params.shards} --out {params.folder}"
        " --scale {params.scale} 2>&1 | tee {log}"
