# The untrained students, cut from the first teacher.


rule cut_student:
    input:
        code=source_files("student"),
        digest=f"{results}/teachers/{settings.first_teacher}/model.sha256",
        teacher=ancient(f"{results}/teachers/{settings.first_teacher}/model"),
    output:
        model=directory(f"{results}/students/{{student}}/model"),
        digest=f"{results}/students/{{student}}/model.sha256",
        record=f"{results}/students/{{student}}/student.json",
    log:
        f"{results}/logs/cut_student/{{student}}.log",
    benchmark:
        f"{results}/benchmarks/cut_student/{{student}}.tsv"
    conda:
        "../../environment.yml"
    params:
        values=lambda wildcards: graph.student(wildcards.student),
        scale=scale,
    shell:
        "budgeted-lora stage cut-student --values {params.values:q} --teacher {input.teacher} --out {output.model}"
        " --record {output.record} --scale {params.scale} 2>&1 | tee {log}"


rule measure_statistics:
    input:
        code=source_files("statistics"),
        digests=[
            f"{results}/students/{{student}}/model.sha256",
            f"{results}/data/train.json",
        ],
        student=ancient(f"{results}/students/{{student}}/model"),
        tokens=ancient(f"{results}/data/train.bin"),
    output:
        folder=directory(f"{results}/students/{{student}}/statistics"),
        digest=f"{results}/students/{{student}}/statistics.sha256",
        record=f"{results}/students/{{student}}/statistics.json",
    log:
        f"{results}/logs/measure_statistics/{{student}}.log",
    benchmark:
        f"{results}/benchmarks/measure_statistics/{{student}}.tsv"
    conda:
        "../../environment.yml"
    threads: settings.threads.training
    resources:
        gpu=1,
    params:
        values=graph.statistics(),
        device=settings.device,
        threads=settings.threads.training,
        scale=scale,
    shell:
        "budgeted-lora stage measure-statistics --values {params.values:q} --student {input.student} --tokens {input.tokens}"
        " --out {output.folder} --record {output.record} --scale {params.scale} --threads {params.threads}"
        " --device {params.device} 2>&1 | tee {log}"
