"""The parts of the newest schema, one per line, by which repair.py recognises it. See tests/db/test_repair.py."""

from __future__ import annotations

SHAPE = """\
column audit act text not null
column audit at timestamptz not null
column audit count int8 not null
column audit id int8 not null
column audit target jsonb not null
column audit who text not null
column cancel_request id int8 not null
column cancel_request job_id int8 not null
column cancel_request queue text not null
column cancel_request reason text
column cancel_request requested_at timestamptz not null
column cancel_request token uuid
column figure cancelled int4 not null
column figure completed int4 not null
column figure discarded int4 not null
column figure failed int4 not null
column figure interrupted int4 not null
column figure kind text not null
column figure minute timestamptz not null
column figure queue text not null
column figure run_counts numeric not null
column figure run_seconds float8 not null
column figure snoozed int4 not null
column figure wait_counts numeric not null
column figure wait_seconds float8 not null
column job args jsonb not null
column job attempt int4 not null
column job attempted_at timestamptz
column job attempted_by _text not null
column job created_at timestamptz not null
column job errors jsonb not null
column job finalized_at timestamptz
column job id int8 not null
column job kind text not null
column job leased_until timestamptz
column job max_attempts int4 not null
column job metadata jsonb not null
column job output jsonb
column job priority int2 not null
column job queue text not null
column job schedule text
column job scheduled_at timestamptz not null
column job state job_state not null
column job tags _text not null
column job tick timestamptz
column job token uuid
column job unique_key bytea
column job unique_states _text
column job_progress done float8 not null
column job_progress job_id int8 not null
column job_progress note text
column job_progress token uuid not null
column job_progress total float8
column job_progress updated_at timestamptz not null
column maintenance duty text not null
column maintenance next_run_at timestamptz not null
column migration applied_at timestamptz not null
column migration digest text not null
column migration name text not null
column migration version int4 not null
column queue keep_cancelled interval
column queue keep_completed interval
column queue keep_discarded interval
column queue name text not null
column queue paused_at timestamptz
column queue updated_at timestamptz not null
column schedule args jsonb
column schedule catch_up text not null
column schedule created_at timestamptz not null
column schedule error text
column schedule in_code bool not null
column schedule kind text
column schedule last_tick_at timestamptz
column schedule name text not null
column schedule next_tick_at timestamptz
column schedule options jsonb
column schedule paused_at timestamptz
column schedule planned_for text
column schedule registered jsonb
column schedule run_now_at timestamptz
column schedule seen_at timestamptz
column schedule spec text
column schedule updated_at timestamptz not null
column schedule version int4 not null
column schedule window interval
column schedule zone text not null
column scheduler id uuid not null
column scheduler schedules _text not null
column scheduler seen_at timestamptz not null
column scheduler worker text not null
column worker code_version text
column worker host text not null
column worker id text not null
column worker kinds _text not null
column worker lost_at timestamptz
column worker pid int4 not null
column worker queues jsonb not null
column worker seen_at timestamptz not null
column worker started_at timestamptz not null
column worker stuck jsonb not null
column worker threads int4 not null
column worker version text not null
function advisory_class 0
function attempt_lost 0
function check_job 9
function check_uniqueness 2
function deallocate_since 1
function enqueue 12
function refuse_job 0
function schedule_changed 0
function unique_key 5
function unique_states 1
index audit audit_pkey
index cancel_request cancel_request_job
index cancel_request cancel_request_pkey
index figure figure_pkey
index job job_due
index job job_fetch
index job job_final
index job job_pkey
index job job_running
index job job_tick
index job job_unique
index job_progress job_progress_pkey
index maintenance maintenance_pkey
index migration migration_pkey
index queue queue_pkey
index schedule schedule_pkey
index scheduler scheduler_pkey
index worker worker_pkey
rule audit audit_pkey
rule audit audit_values
rule cancel_request cancel_request_pkey
rule cancel_request cancel_request_size
rule figure figure_minute
rule figure figure_pkey
rule job job_pkey
rule job_progress job_progress_pkey
rule job_progress job_progress_values
rule job_state job_state
rule maintenance maintenance_pkey
rule migration migration_pkey
rule queue queue_name
rule queue queue_pkey
rule queue queue_times
rule schedule schedule_catch_up
rule schedule schedule_is_whole
rule schedule schedule_json
rule schedule schedule_names
rule schedule schedule_pkey
rule schedule schedule_times
rule schedule schedule_window
rule scheduler scheduler_pkey
rule worker worker_pkey
rule worker worker_times
trigger job job_rules
trigger schedule schedule_inserted
trigger schedule schedule_updated
"""
