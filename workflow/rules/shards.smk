# A large corpus: one job per shard, then one that joins them. The name of a shard's file is in shards.py.

shards = graph.shard_jobs()


wildcard_constraints:
    shard="|".join(shards.names),


if shards.downloaded:

    rule fetch_shard:
        input:
            code=code.of("fetch_shard"),
        output:
            out=shards.download_name(),
            record=f"{shards.folder}/{{shard}}/source.json",
        log:
            f"{results}/logs/fetch_shard/{{shard}}.log",
        benchmark:
            f"{results}/benchmarks/fetch_shard/{{shard}}.tsv"
        retries: 2
        conda:
            "../../environment.yml"
        params:
            options=lambda wildcards: options.as_json(graph, options.fetch_shard(graph, wildcards.shard)),
            downloads=f"{shards.folder}/.downloads/{{shard}}",
        message:
            "Downloading shard {wildcards.shard}"
        shell:
            stage_command("fetch_shard", output=["out", "record"], params=["options", "downloads"])


rule tokenize_shard:
    input:
        code=code.of("tokenize_shard"),
        digests=[
            f"{results}/data/tokenizer.sha256",
            *([f"{shards.folder}/{{shard}}/source.json"] if shards.downloaded else []),
        ],
        tokenizer=ancient(f"{results}/data/tokenizer"),
        downloaded=ancient([shards.download_name()] if shards.downloaded else []),
        local=lambda wildcards: shards.local_files(wildcards.shard),
    output:
        multiext(f"{shards.folder}/{{shard}}/train", ".bin", ".idx", ".json"),
        multiext(f"{shards.folder}/{{shard}}/held_out", ".bin", ".idx", ".json"),
        digests=f"{shards.folder}/{{shard}}/digests.bin",
        record=f"{shards.folder}/{{shard}}/shard.json",
    log:
        f"{results}/logs/tokenize_shard/{{shard}}.log",
    benchmark:
        f"{results}/benchmarks/tokenize_shard/{{shard}}.tsv"
    conda:
        "../../environment.yml"
    params:
        options=lambda wildcards: options.as_json(graph, options.tokenize_shard(graph, wildcards.shard)),
        outside=lambda wildcards: graph.outside.identity(shards.local_files(wildcards.shard)),
        out=lambda wildcards, output: dirname(output.record),
    message:
        "Tokenizing shard {wildcards.shard}"
    shell:
        stage_command("tokenize_shard", input=["tokenizer"], params=["options", "out"])


rule join_shards:
    input:
        code=code.of("join_shards"),
        records=shards.records(),
        tokens=ancient(shards.tokens()),
    output:
        token_files(f"{results}/data"),
        manifest=f"{results}/data/manifest.json",
    log:
        f"{results}/logs/join_shards.log",
    benchmark:
        f"{results}/benchmarks/join_shards.tsv"
    conda:
        "../../environment.yml"
    params:
        options=options.as_json(graph, options.join_shards(graph)),
        folder=lambda wildcards, input: dirname(dirname(input.records[0])),
        out=lambda wildcards, output: dirname(output.manifest),
    message:
        "Joining the shards to token files"
    shell:
        stage_command("join_shards", params=["options", "folder", "out"])
