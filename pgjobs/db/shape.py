"""The parts of the newest schema, one per line, by which repair.py recognises it. See tests/db/test_repair.py."""

from __future__ import annotations

SHAPE = """\
column cancel_request id int8 not null
column cancel_request job_id int8 not null
column cancel_request queue text not null
column cancel_request reason text
column cancel_request requested_at timestamptz not null
column cancel_request token uuid
column job args json_object not null
column job attempt attempts not null
column job attempted_at instant
column job attempted_by texts not null
column job created_at instant not null
column job errors json_array not null
column job finalized_at instant
column job id int8 not null
column job kind kind_name not null
column job leased_until instant
column job max_attempts attempt_limit not null
column job metadata json_object not null
column job output jsonb
column job priority int2 not null
column job queue queue_name not null
column job schedule text
column job scheduled_at instant not null
column job state job_state not null
column job tags texts not null
column job tick timestamptz
column job token uuid
column job unique_key bytea
column job unique_states covered_states
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
column worker threads int4 not null
column worker version text not null
function advisory_class 0
function attempt_lost 0
function check_job 9
function check_uniqueness 2
function deallocate_since 1
function enqueue 12
function schedule_changed 0
function unique_key 5
function unique_states 1
index cancel_request cancel_request_job
index cancel_request cancel_request_pkey
index job job_due
index job job_fetch
index job job_final
index job job_pkey
index job job_running
index job job_tick
index job job_unique
index maintenance maintenance_pkey
index migration migration_pkey
index queue queue_pkey
index schedule schedule_pkey
index scheduler scheduler_pkey
index worker worker_pkey
rule attempt_limit job_attempt
rule attempts job_attempt
rule cancel_request cancel_request_pkey
rule cancel_request cancel_request_size
rule covered_states job_unique_covers
rule instant job_times
rule job job_finalized
rule job job_has_attempts_left
rule job job_pkey
rule job job_unique_states
rule job_state job_state
rule json_array job_json
rule json_object job_json
rule kind_name job_names
rule maintenance maintenance_pkey
rule migration migration_pkey
rule queue queue_name
rule queue queue_pkey
rule queue queue_times
rule queue_name job_names
rule schedule schedule_catch_up
rule schedule schedule_is_whole
rule schedule schedule_json
rule schedule schedule_names
rule schedule schedule_pkey
rule schedule schedule_times
rule schedule schedule_window
rule scheduler scheduler_pkey
rule texts job_arrays
rule worker worker_pkey
rule worker worker_times
trigger schedule schedule_inserted
trigger schedule schedule_updated
"""
