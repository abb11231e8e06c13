"""A dataset kept up to date with its manifest folder, once a day, from Airflow.

Put it into the DAGs folder of an Airflow whose workers have this project at FLUXMILL_HOME and reach
the cluster. The token is a file named by RAY_AUTH_TOKEN_PATH in the workers' environment.
"""

from datetime import UTC, datetime, timedelta

from airflow import DAG
from airflow.operators.bash import BashOperator

SUBMIT = (
    "cd $FLUXMILL_HOME && .venv/bin/python -m jobs.submit "
    "--config {{ params.config }} --tick {{ ds }} --wait"
)

with DAG(
    dag_id="fluxmill_nightly",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={"config": "nightly.yaml"},
) as dag:
    BashOperator(
        task_id="generate",
        bash_command=SUBMIT,
        append_env=True,
        env={"RAY_AUTH_MODE": "token"},
        retries=3,  # 75 (stopped) and 1: the next attempt goes on
        retry_delay=timedelta(minutes=5),
        skip_on_exit_code=None,
    )
