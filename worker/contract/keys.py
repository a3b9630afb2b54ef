"""Every Redis key, queue name and lifetime. A key not named here does not exist.

All keys begin with `Settings.key_prefix`. Scripts build keys from that prefix, so the records need
one Redis (or a primary with replicas), not a cluster; kombu's Redis transport has the same limit.

    job:<id>        hash    the record, the truth about a job: its short fields
    doc:<id>        hash    and its long ones, see `record`: question, answer, errors, receiver
    ev:<id>         stream  its events after the first; entry id = sequence number
    tok:<id>        string  ids of the tokens streamed so far, gone with the end of the job
    queued:<queue>  zset    waiting jobs by created_at: order, position, lost tickets
    queues          set     queue names ever used
    hw              hash    queue → created_at of the youngest job claimed from it
    delayed         zset    jobs that are in no queue before their moment, by that moment
    outbox          zset    tickets to publish, `<job id> <queue>`, by the time they are due
    leases          zset    held jobs by the end of their lease
    owned:<owner>   set     jobs that one worker process holds
    start_by        zset    jobs with a start deadline
    run_by          zset    jobs that an engine has begun and that have an execution timeout
    retention       zset    ended jobs by the time they are erased
    jobs            zset    all jobs by created_at, for lists
    dead            zset    jobs that took their workers down, by the time they failed
    gone:<id>       string  tombstone of an erased job
    idem:<key>      hash    idempotency key → job id, hash of the body
    models          hash    served name → card of the model (JSON)
    models_at       hash    served name → second in which it was first announced
    worker:<owner>  string  a process's heartbeat (JSON), expires by itself
    workers         zset    owners by last heartbeat
    near:<hash>     string  the owner that last took a job with this beginning, see `near`
    direct:<owner>  zset    waiting jobs whose ticket is in this worker's own queue, by that moment
    pace:<group>    hash    starts and the ms they took, of `media` or `chat.<model>`, for the ETA
    stats           hash    totals for the metrics: name, label and model, tabs between → count
    file:<id>       hash    a file of /v1/files or of a batch's results
    files           zset    files by created_at, for lists
    files:<purpose> zset    those of one purpose
    file_expiry     zset    files by the time they are erased
    batch:<id>      hash    a batch: its record, counts, and how far its runner is
    batches         zset    batches by created_at, for lists
    batch_work      zset    batches that have not ended by the time they expire
    batch_expiry    zset    ended batches by the time their record is erased
    bopen:<id>      set     a batch's jobs that have not ended
    bdone:<id>:<f>  list    its ended lines that stand in no part yet; f is output or error
    bparts:<id>:<f> list    parts of its two files: number, ETag, bytes
    memo:<name>     string  short notes and named locks: the media stage's, the sweeper's
    live:<id>       channel events of a job as they are written
    ctl:<owner>     channel ids of jobs that a worker shall drop
    hook:<event>    hash    one event for one receiver: what is owed, and the log of its tries
    hooks:<lane>    zset    events owed in a lane by the time they are due
    hook_lanes      zset    lanes by the time at which their first event is due
    hook_watch:<lane> string  somebody looks after the lane, or a ticket for it is on its way
    hooks_owed      zset    all events owed by the time of their transition
    hook_of:<id>    list    events of a job, a batch or an endpoint, the youngest first
    endpoint:<id>   hash    a registered receiver, its secrets and how it does
    endpoints       zset    registered receivers by created_at
    hook_filters    hash    enabled receiver → the event types that it wants
    hook_secret     string  the secret that signs single jobs' callbacks where none is configured
"""

from worker.contract.job import Hold, Lane, Priority

MEDIA_QUEUE = "media"
HOOK_QUEUE = "webhooks"

IDEMPOTENCY_S = 86_400  # as long as the field's APIs replay an Idempotency-Key
TOMBSTONE_S = 30 * 86_400  # how long an erased job answers 410 instead of 404
HEARTBEAT_S = 15  # a worker process silent for so long is not counted as alive
ANNOUNCE_S = 4.0  # how often each says that it is; two may get lost
OUTBOX_GRACE_MS = 2_000  # a publisher that has not confirmed by then is presumed dead
RETICKET_MS = 3_000  # a job overtaken by one this much younger has lost its ticket
BUCKETS_MS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)  # waits
PACE_MS = 60_000  # how fast a measured pace is forgotten
BACKSTOP_MS = 2_000  # a job over its timeout for so long is ended by the sweeper
NEAR_S = 300  # longer than most think before they go on; a busy engine's cache is newer than that
DIRECT_SHARE = 4  # under a quarter of its slots in use: one job more costs nobody time
DIRECT_WAIT_MS = 300  # a worker that has left a ticket of its own for so long gets no more
DIRECT_S = 60  # what was sent to a worker's own queue has long been sent to all by then
MAX_ATTEMPTS = 20  # attempts of one job that are remembered
MAX_CRASHES = 3  # workers a job may take down before it is dead
HOOK_LEASE_MS = 20_000  # a claimed event whose worker has said nothing for so long is due again
HOOK_WATCH_MS = 2_000  # a lane that nobody has looked at for so long gets a new ticket
HOOK_MAX_AGE_MS = 5 * 86_400_000  # an event owed for so long is given up, whatever is left to try
HOOK_DISABLE_MS = 3 * 86_400_000  # a receiver that has taken nothing for so long is disabled
HOOK_PAUSE_MS = 36 * 3_600_000  # failures further apart than this are not one row of failures
HOOK_LIST_S = 8 * 86_400  # a list of events outlives the longest schedule
HOOK_OVERLAP_MS = 86_400_000  # how long a rotated secret goes on signing


def chat_queue(model: str, priority: Priority) -> str:
    """Return the queue of one model and class, `chat.<model>.<class>`."""
    return f"chat.{model}.{priority}"


def chat_queues(model: str) -> tuple[str, ...]:
    """Return the model's queues, the most urgent class first."""
    return tuple(chat_queue(model, priority) for priority in Priority)


def own_queue(model: str, owner: str) -> str:
    """Return a chat worker's own queue; the scripts build the same name."""
    return f"chat.{model}@{owner}"


def is_own_queue(queue: str) -> bool:
    """Tell a worker's own queue from those that workers share; a model's name may have an @."""
    return "@" in queue and queue.rsplit(".", 1)[-1] not in list(Priority)


def queue_of(hold: Hold) -> str:
    """Return the queue that a held job came from and goes back to."""
    if hold.lane is Lane.MEDIA:
        return MEDIA_QUEUE
    return chat_queue(hold.request.model, hold.spec.priority)


def ticket(job_id: str, queue: str) -> str:
    """Return a ticket as it stands in the outbox."""
    return f"{job_id} {queue}"


def ticket_parts(ticket: str) -> tuple[str, str]:
    """Return job id and queue of a ticket in the outbox."""
    job_id, queue = ticket.split(" ", 1)
    return job_id, queue


def first_lane(*, has_media: bool) -> Lane:
    """Return where a new job waits first."""
    return Lane.MEDIA if has_media else Lane.CHAT
