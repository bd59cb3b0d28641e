# The untrained students, cut from the first teacher.


rule cut_student:
    input:
        code=code.of("cut_student"),
        digest=f"{results}/teachers/{scale_config.first_teacher}/model.sha256",
        record_of_tokens=lambda wildcards: [
            f"{results}/data/train.json" for _ in graph.calibration_tokens(wildcards.student)
        ],
        teacher=ancient(f"{results}/teachers/{scale_config.first_teacher}/model"),
        tokens=lambda wildcards: ancient(graph.calibration_tokens(wildcards.student)),
    output:
        out=directory(f"{results}/students/{{student}}/model"),
        digest=f"{results}/students/{{student}}/model.sha256",
        record=f"{results}/students/{{student}}/student.json",
    log:
        f"{results}/logs/cut_student/{{student}}.log",
    benchmark:
        f"{results}/benchmarks/cut_student/{{student}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: (scale_config.threads.training if graph.calibrated(wildcards.student) else 1)
    resources:
        gpu=lambda wildcards: int(graph.calibrated(wildcards.student)),
    params:
        options=lambda wildcards: options.as_json(graph, options.cut_student(graph, wildcards.student)),
    message:
        "Cutting student {wildcards.student}"
    shell:
        stage_command("cut_student", input=["teacher", "tokens"], output=["out", "record"], params=["options"])


rule measure_statistics:
    input:
        code=code.of("measure_statistics"),
        digests=[f"{results}/students/{{student}}/model.sha256", f"{results}/data/train.json"],
        student=ancient(f"{results}/students/{{student}}/model"),
        tokens=ancient(f"{results}/data/train.bin"),
    output:
        out=directory(f"{results}/students/{{student}}/statistics"),
        digest=f"{results}/students/{{student}}/statistics.sha256",
        record=f"{results}/students/{{student}}/statistics.json",
    log:
        f"{results}/logs/measure_statistics/{{student}}.log",
    benchmark:
        f"{results}/benchmarks/measure_statistics/{{student}}.tsv"
    conda:
        "../../environment.yml"
    threads: scale_config.threads.training
    resources:
        gpu=1,
    params:
        options=options.as_json(graph, options.measure_statistics(graph)),
    message:
        "Measuring statistics of student {wildcards.student}"
    shell:
        stage_command("measure_statistics", input=["student", "tokens"], output=["out", "record"], params=["options"])
