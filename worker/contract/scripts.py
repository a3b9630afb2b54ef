"""The transitions of a job as Lua: each is one atomic step in Redis, guarded by the fence.

A *hold* is the right to write to a job: a claim hands out `fence`, a number that grows with every
claim of either lane, and every later write carries it. A write with a stale fence, or to a job that
is over, changes nothing and says so; its writer drops the job. All moments are Redis's own time in
ms, so clocks of hosts do not matter.

A record lies under two keys, `job:<id>` and `doc:<id>`: `record` says which field stands where.

ARGV[1] is always the key prefix. Only commands of Redis 6.2 are used.
"""

from worker.contract.debt_scripts import OWE

PRELUDE = (
    """
local P = ARGV[1]
local TERMINAL = {completed=true, failed=true, cancelled=true, expired=true}
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function emit(id, kind, data)
  local seq = redis.call('HINCRBY', P..'job:'..id, 'seq', 1)
  redis.call('XADD', P..'ev:'..id, seq..'-0', 'k', kind, 'd', data)
  redis.call('PUBLISH', P..'live:'..id, seq..' '..kind..' '..data)
end
local function emit_status(id, status, stage, attempt, at)
  emit(id, 'status', string.format('{"status":"%s","stage":"%s","attempt":%d,"at":%d}',
                                   status, stage, attempt, at))
end
-- totals of all processes for the metrics: name, label and model of each, tabs between
local function count(name, label, model, by)
  redis.call('HINCRBY', P..'stats', name..'\t'..label..'\t'..model, by or 1)
end
local function observe(name, model, ms)
  local upto = 'inf'
  for _, bound in ipairs({BUCKETS_MS}) do
    if ms <= bound then upto = bound break end
  end
  count(name, upto, model)
  count(name, 'sum', model, math.floor(ms))
end
local function observe_times(job, model, at)
  local r = redis.call('HMGET', job, 'created_at', 'started_at', 'media_at', 'media_done_at',
                       'first_token_at', 'due_at')
  local since = r[6] or r[1]
  observe('total', model, at - since)
  if r[2] then observe('queue', model, r[2] - since) end
  if r[3] and r[4] then observe('media', model, r[4] - r[3]) end
  if r[5] then observe('ttft', model, r[5] - since) end
end
-- The measured pace of a group of workers: starts and the ms they took, over about the last minute.
-- A gap counts only where the next job was there already: an idle worker is not a slow one.
local function keep_pace(group, queued_at, at)
  local key = P..'pace:'..group
  local r = redis.call('HMGET', key, 'starts', 'ms', 'last_at')
  local starts, ms, last = tonumber(r[1] or 0), tonumber(r[2] or 0), tonumber(r[3] or 0)
  if queued_at <= last then
    local gap = math.min(at - last, PACE_MS)
    local fade = math.exp(-gap / PACE_MS)
    starts, ms = starts * fade + 1, ms * fade + gap
  end
  redis.call('HSET', key, 'starts', starts, 'ms', ms, 'last_at', at)
end
local function gap_ms(group)
  local r = redis.call('HMGET', P..'pace:'..group, 'starts', 'ms')
  local starts = tonumber(r[1] or 0)
  return starts > 0 and r[2] / starts or nil
end
-- jobs served before a waiting one, and ms until it starts at the measured pace, -1 if unknown
local function outlook(id)
  local r = redis.call('HMGET', P..'job:'..id, 'queue', 'model', 'lane', 'priority')
  local rank = redis.call('ZRANK', P..'queued:'..r[1], id)
  if not rank then return -1, -1 end
  local is_media, ahead = r[3] == 'media', 0
  for _, class in ipairs({'high', 'normal', 'low'}) do
    if class == r[4] and not is_media then break end
    ahead = ahead + redis.call('ZCARD', P..'queued:chat.'..r[2]..'.'..class)
    if class == r[4] then break end
  end
  local chat = gap_ms('chat.'..r[2])
  if not is_media then return rank + ahead, chat and math.floor((rank + ahead + 1) * chat) or -1 end
  -- while it waits for its media, those ahead of it at the engine go on
  local media = gap_ms('media') or 0
  return rank, chat and math.floor(math.max((ahead + 1) * chat, (rank + 1) * media)) or -1
end
local function let_go(id, owner)
  redis.call('ZREM', P..'leases', id)
  if owner then redis.call('SREM', P..'owned:'..owner, id) end
end
-- A ticket stands in the outbox only while its job waits in that queue: whoever sends it need not
-- look at the job, so that a sweep costs the same however many records there are.
local function ticket(id, queue) return id..' '..queue end
local function enqueue(id, queue, queued_at, due)
  redis.call('SADD', P..'queues', queue)
  redis.call('ZADD', P..'queued:'..queue, queued_at, id)
  redis.call('ZADD', P..'outbox', due, ticket(id, queue))
end
local function leave_queue(id, queue)
  redis.call('ZREM', P..'outbox', ticket(id, queue))
  return redis.call('ZREM', P..'queued:'..queue, id) == 1
end
-- new tickets for waiting jobs, unless theirs stand in the outbox already; → how many
local function reissue(ids, queue, at)
  local due = {}
  for i, id in ipairs(ids) do due[2 * i - 1], due[2 * i] = at, ticket(id, queue) end
  return #ids > 0 and redis.call('ZADD', P..'outbox', 'NX', unpack(due)) or 0
end
-- Whether one answer more costs a worker's others nothing, and it takes what it is sent.
local function is_idle(owner, model, at)
  local said = redis.call('GET', P..'worker:'..owner)
  said = said and cjson.decode(said)
  if not said or said.state ~= 'ready' or said.role ~= 'chat' or said.model ~= model then
    return false
  end
  local sent = P..'direct:'..owner
  local oldest = redis.call('ZRANGE', sent, 0, 0, 'WITHSCORES')[2]
  if oldest and at - oldest > DIRECT_WAIT then return false end
  local busy = redis.call('SCARD', P..'owned:'..owner) + redis.call('ZCARD', sent)
  return busy * DIRECT_SHARE < (said.slots or 0)
end
-- The queue for a new ticket: that of the worker which has the job's beginning in its cache, where
-- that costs nothing, else the one that all share. The job waits in the shared queue in any case,
-- and the outbox holds a ticket for it: what confirms that the direct one is sent takes out no
-- member. So where nobody claims the job within GRACE, whatever the reason, all others hear of it.
local function queue_near(id, near, queue, at)
  local owner = near and redis.call('GET', P..'near:'..near)
  local model = owner and queue:match('^chat%.(.*)%.%a+$')
  if not owner or not is_idle(owner, model, at) then return queue end
  redis.call('ZADD', P..'direct:'..owner, at, id)
  redis.call('EXPIRE', P..'direct:'..owner, DIRECT_S)
  redis.call('HSET', P..'job:'..id, 'sent_to', owner)
  return 'chat.'..model..'@'..owner
end
local function unsend(id, owner)
  redis.call('ZREM', P..'direct:'..owner, id)
  redis.call('HDEL', P..'job:'..id, 'sent_to')
end
-- an ended line of a batch: counted, and laid out for the batch's runner
local function lay_out(batch, entry, is_completed)
  redis.call('HINCRBY', P..'batch:'..batch, is_completed and 'completed' or 'failed', 1)
  redis.call('RPUSH', P..'bdone:'..batch..':'..(is_completed and 'output' or 'error'), entry)
end
local function is_batch_open(batch)
  return redis.call('HGET', P..'batch:'..batch, 'status') == 'in_progress'
end
local function end_line(id, status)
  local batch = redis.call('HGET', P..'job:'..id, 'batch')
  if not batch then return end
  redis.call('HDEL', P..'job:'..id, 'batch')  -- a later retry is no line of the batch any more
  redis.call('HSET', P..'job:'..id, 'unwritten', 1)
  redis.call('SREM', P..'bopen:'..batch, id)
  lay_out(batch, id, status == 'completed')
end
"""
    + OWE
    + """
-- `long`: what goes under doc:<id>
local function finish(id, status, at, long)
  local job = P..'job:'..id
  local r = redis.call('HMGET', job, 'owner', 'queue', 'retention_ms', 'model', 'sent_to')
  redis.call('HSET', job, 'status', status, 'stage', '', 'held', 0, 'finished_at', at,
             'expires_at', at + r[3])
  if #long > 0 then redis.call('HSET', P..'doc:'..id, unpack(long)) end
  redis.call('DEL', P..'tok:'..id)
  if not leave_queue(id, r[2]) then redis.call('ZREM', P..'delayed', id) end
  if r[5] then unsend(id, r[5]) end
  redis.call('ZREM', P..'start_by', id)
  redis.call('ZREM', P..'run_by', id)
  let_go(id, r[1])
  redis.call('ZADD', P..'retention', at + r[3], id)
  count('finished', status, r[4])
  if status == 'completed' then observe_times(job, r[4], at) end
  end_line(id, status)
  emit(id, status, '{}')
  owe_job(id, status, at)
end
-- `timeout_s` runs from the first attempt's first step in the engine. The worker ends the job; the
-- sweeper, a little later, one whose worker cannot.
local function start_clock(id, at)
  local timeout_ms = tonumber(redis.call('HGET', P..'job:'..id, 'timeout_ms') or 0)
  if timeout_ms > 0 then redis.call('ZADD', P..'run_by', at + timeout_ms + BACKSTOP, id) end
end
-- One flush's piece of a job: a delta, or the news that generation began. Pieces are numbered per
-- hold, so that a call repeated after a lost answer writes nothing twice.
local function write(id, at, piece, kind, data, token_ids, tokens)
  local job = P..'job:'..id
  local r = redis.call('HMGET', job, 'piece', 'status', 'attempt', 'tokens')
  if tonumber(r[1]) >= tonumber(piece) then return end
  redis.call('HSET', job, 'piece', piece)
  if kind == 'generating' then
    redis.call('HSET', job, 'stage', kind)
    if redis.call('HSETNX', job, 'generating_at', at) == 1 then start_clock(id, at) end
    return emit_status(id, r[2], kind, tonumber(r[3]), at)
  end
  redis.call('HSET', job, 'tokens', (r[4] or 0) + tokens)
  redis.call('HSETNX', job, 'first_token_at', at)
  redis.call('APPEND', P..'tok:'..id, token_ids)
  emit(id, 'delta', data)
end
local function held(id, fence)
  local r = redis.call('HMGET', P..'job:'..id, 'held', 'fence')
  return r[1] == '1' and r[2] == fence
end
-- what became of an attempt: one line of JSON each, the youngest MAX_ATTEMPTS are kept
local function log_attempt(id, status, at, error)
  local r = redis.call('HMGET', P..'job:'..id, 'attempt', 'lane', 'owner', 'claimed_at')
  local before = redis.call('HGET', P..'doc:'..id, 'attempts')
  local all = (before and before..'\\n' or '')..string.format(
    '{"attempt":%d,"status":"%s","lane":"%s","owner":%s,'..
    '"started_at":%s,"finished_at":%s,"error":%s}',
    r[1], status, r[2], r[3] and '"'..r[3]..'"' or 'null', r[4] and r[4] / 1000 or 'null',
    at / 1000, error or 'null')
  local _, breaks = all:gsub('\\n', '')
  if breaks >= MAX_ATTEMPTS then all = all:sub(all:find('\\n', 1, true) + 1) end
  redis.call('HSET', P..'doc:'..id, 'attempts', all)
end
-- back to its queue; a crash (JSON, else false) counts against the job, and the last one ends it
local function give_back(id, crash, max_crashes, error)
  local job, at = P..'job:'..id, now()
  local r = redis.call('HMGET', job, 'owner', 'queue', 'queued_at', 'attempt', 'lane', 'cancel')
  let_go(id, r[1])
  if crash then count('takeovers', r[5], '') end
  log_attempt(id, crash and 'lost' or 'given_back', at, crash or nil)
  if crash and redis.call('HINCRBY', job, 'crashes', 1) >= max_crashes then
    redis.call('ZADD', P..'dead', at, id)
    return finish(id, 'failed', at, {'error', error})
  end
  if r[6] == '1' then return finish(id, 'cancelled', at, {}) end
  local stage = r[5] == 'media' and 'waiting_media' or 'waiting_engine'
  redis.call('HSET', job, 'held', 0, 'status', 'queued', 'stage', stage)
  enqueue(id, r[2], r[3], at)
  emit_status(id, 'queued', stage, tonumber(r[4]), at)
end
local function erase(id)
  local at = now()
  redis.call('DEL', P..'job:'..id, P..'doc:'..id, P..'ev:'..id, P..'tok:'..id, P..'hook_of:'..id)
  redis.call('ZREM', P..'jobs', id)
  redis.call('ZREM', P..'retention', id)
  redis.call('ZREM', P..'dead', id)
end
"""
)

# → {'ok', created at, jobs ahead, ms until it starts or -1, queue for the ticket} | {'later'}
#   | {'replay', job id, body hash} | {'full', jobs that wait, ms until one starts or -1}
# Said again after a lost answer, it is the same job: 'later' where it has left its queue since.
SUBMIT = """
-- id, queue, lane, stage, near, '1' if an answer came before, idem key or '', body hash, idem_s,
-- limit, not_before_ms, start_deadline_ms, number of queues that count, their names…, number of
-- short names and values, then these (name, value…), then the long ones
local id, queue, lane, stage, near = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local idem, goes_to = ARGV[8], queue
local at, not_before = now(), tonumber(ARGV[12])
local function accepted(created_at)
  local ahead, eta_ms = outlook(id)
  if ahead < 0 then return {'later'} end
  if eta_ms >= 0 then redis.call('HSETNX', P..'job:'..id, 'eta_ms', eta_ms) end
  return {'ok', tonumber(created_at), ahead, eta_ms, goes_to}
end
local before = redis.call('HGET', P..'job:'..id, 'created_at')
if before then return accepted(before) end
if idem ~= '' then
  local old = redis.call('HMGET', P..'idem:'..idem, 'id', 'hash')
  if old[1] then return {'replay', old[1], old[2]} end
end
local counted = 15 + tonumber(ARGV[14])
local first = counted + 1
local long = first + ARGV[counted]
local waiting = 0
for i = 15, counted - 1 do waiting = waiting + redis.call('ZCARD', P..'queued:'..ARGV[i]) end
if waiting >= tonumber(ARGV[11]) then
  return {'full', waiting, math.floor(gap_ms(ARGV[15]:match('^(.*)%.')) or -1)}
end
local batch = ARGV[first] == 'batch' and ARGV[first + 1]
if batch and (not is_batch_open(batch) or redis.call('EXISTS', P..'gone:'..id) == 1) then
  return {'closed'}
end
if batch then redis.call('SADD', P..'bopen:'..batch, id) end
redis.call('HSET', P..'job:'..id, 'status', 'queued', 'stage', stage, 'lane', lane, 'queue', queue,
           'near', near, 'created_at', at, 'queued_at', math.max(at, not_before), 'seq', 1,
           'base', 1, 'attempt', 0, 'fence', 0, 'crashes', 0, 'held', 0,
           unpack(ARGV, first, long - 1))
redis.call('HSET', P..'doc:'..id, unpack(ARGV, long))
redis.call('ZADD', P..'jobs', at, id)
if not_before > at then  -- in no queue until the sweeper finds it due
  redis.call('ZADD', P..'delayed', not_before, id)
  redis.call('HSET', P..'job:'..id, 'due_at', not_before)
else
  enqueue(id, queue, at, at + GRACE)
  if lane == 'chat' and ARGV[7] == '1' then goes_to = queue_near(id, near, queue, at) end
end
if tonumber(ARGV[13]) > 0 then
  redis.call('ZADD', P..'start_by', math.max(at, not_before) + ARGV[13], id)
end
if idem ~= '' then
  redis.call('HSET', P..'idem:'..idem, 'id', id, 'hash', ARGV[9])
  redis.call('EXPIRE', P..'idem:'..idem, ARGV[10])
end
return accepted(at)
"""

# → nil (somebody has it, or it is over)
#   | {fence, attempt, ms since the first step in the engine, crashes, tokens, request, spec, media}
CLAIM = """
-- id, lane, owner, nonce, lease_ms
local id, lane, owner, nonce = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job, at = P..'job:'..id, now()
local r = redis.call('HMGET', job, 'status', 'lane', 'held', 'queue', 'queued_at', 'media_at',
                     'started_at', 'nonce', 'model', 'created_at', 'eta_ms', 'fence', 'attempt',
                     'generating_at', 'crashes', 'tokens', 'sent_to', 'near')
local function granted(fence, attempt)
  return {fence, attempt, r[14] and at - r[14] or 0, r[15], r[16],
          unpack(redis.call('HMGET', P..'doc:'..id, 'request', 'spec', 'media'))}
end
if r[3] == '1' and r[8] == nonce then return granted(r[12], r[13]) end  -- asked a second time
if not r[1] or TERMINAL[r[1]] or r[2] ~= lane or r[3] == '1' then return nil end
local start_by = lane == 'chat' and redis.call('ZSCORE', P..'start_by', id)
if start_by and at > tonumber(start_by) then return nil end  -- too late: the sweeper ends it
if not leave_queue(id, r[4]) then return nil end  -- not due yet
if r[17] then unsend(id, r[17]) end
local fence, attempt = tostring(r[12] + 1), tonumber(r[13])
local status, stage, first
if lane == 'media' then
  status, stage, first = 'queued', 'fetching', not r[6] and 'media_at'
else
  attempt = attempt + 1
  status, stage, first = 'in_progress', 'waiting_engine', not r[7] and 'started_at'
  if first then owe_job(id, 'started', at) end
  if attempt == 1 and r[11] then
    observe('eta_error', r[9], math.abs(at - r[10] - r[11]))
  end
  if start_by then redis.call('ZREM', P..'start_by', id) end
  if r[18] then redis.call('SET', P..'near:'..r[18], owner, 'EX', NEAR_S) end
end
redis.call('HSET', job, 'held', 1, 'owner', owner, 'nonce', nonce, 'piece', 0, 'status', status,
           'stage', stage, 'claimed_at', at, 'fence', fence, 'attempt', attempt,
           unpack(first and {first, at} or {}))
redis.call('ZADD', P..'leases', at + ARGV[6], id)
redis.call('SADD', P..'owned:'..owner, id)
local hw = redis.call('HGET', P..'hw', r[4])
if not hw or tonumber(hw) < tonumber(r[5]) then redis.call('HSET', P..'hw', r[4], r[5]) end
keep_pace(lane == 'media' and lane or 'chat.'..r[9], tonumber(r[5]), at)
emit_status(id, status, stage, attempt, at)
return granted(fence, attempt)
"""

# → {lost ids…}, {ids to cancel…}
RENEW = """
-- lease_ms, then id, fence…
local at, lost, cancel = now(), {}, {}
for i = 3, #ARGV, 2 do
  if held(ARGV[i], ARGV[i + 1]) then
    redis.call('ZADD', P..'leases', at + ARGV[2], ARGV[i])
    local wish = redis.call('HGET', P..'job:'..ARGV[i], 'cancel')
    if wish == '1' then cancel[#cancel + 1] = ARGV[i] end
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return {lost, cancel}
"""

# → ids refused
APPEND = """
-- id, fence, piece, kind, delta (JSON), token ids ('1,2,'), number of tokens; and again…
local at, refused = now(), {}
for i = 2, #ARGV, 7 do
  if held(ARGV[i], ARGV[i + 1]) then
    write(ARGV[i], at, unpack(ARGV, i + 2, i + 6))
  else
    refused[#refused + 1] = ARGV[i]
  end
end
return refused
"""

# → 1 | 0 refused
STAGE = """
-- id, fence, stage, media parts done
local id, job, at = ARGV[2], P..'job:'..ARGV[2], now()
if not held(id, ARGV[3]) then return 0 end
local r = redis.call('HMGET', job, 'status', 'attempt', 'stage')
redis.call('HSET', job, 'stage', ARGV[4], 'media_done', ARGV[5])
if r[3] ~= ARGV[4] then emit_status(id, r[1], ARGV[4], tonumber(r[2]), at) end
return 1
"""

# → queue for the ticket | nil refused. The media stage is done: on to the model's queue.
MEDIA_READY = """
-- id, fence, chat queue, media (JSON)
local id, queue = ARGV[2], ARGV[4]
if not held(id, ARGV[3]) then return nil end
local job, at = P..'job:'..id, now()
local r = redis.call('HMGET', job, 'owner', 'attempt', 'cancel', 'near')
let_go(id, r[1])
if r[3] == '1' then finish(id, 'cancelled', at, {}) return queue end
redis.call('HSET', job, 'held', 0, 'lane', 'chat', 'queue', queue, 'stage', 'waiting_engine',
           'media_done_at', at, 'queued_at', at)
redis.call('HSET', P..'doc:'..id, 'media', ARGV[5])
enqueue(id, queue, at, at + GRACE)
emit_status(id, 'queued', 'waiting_engine', tonumber(r[2]), at)
return queue_near(id, r[4], queue, at)
"""

# → 1 | 0 refused. Said again after a lost answer, it is 1 as well.
FINISH = """
-- id, fence, status, number of pieces, the pieces as in APPEND (5 values each), then long fields
-- (name, value…)
local id, fence, at = ARGV[2], ARGV[3], now()
if not held(id, fence) then
  local r = redis.call('HMGET', P..'job:'..id, 'fence', 'status')
  return (r[1] == fence and r[2] == ARGV[4]) and 1 or 0
end
local long = 6 + 5 * ARGV[5]
for i = 6, long - 1, 5 do write(id, at, unpack(ARGV, i, i + 4)) end
finish(id, ARGV[4], at, {unpack(ARGV, long)})
return 1
"""

# → 1 | 0 refused
RELEASE = """
-- id, fence, error of this crash (JSON) or '', max crashes, error of the last crash (JSON)
if not held(ARGV[2], ARGV[3]) then return 0 end
give_back(ARGV[2], ARGV[4] ~= '' and ARGV[4], tonumber(ARGV[5]), ARGV[6])
return 1
"""

# → {id, queue} of each job given back: everything a dead process held, or was sent and did not take
HAND_BACK = """
-- owner, max crashes, error of the last crash, error of this one (JSON)
local given = {}
for _, id in ipairs(redis.call('SMEMBERS', P..'owned:'..ARGV[2])) do
  local r = redis.call('HMGET', P..'job:'..id, 'held', 'owner', 'queue')
  if r[1] == '1' and r[2] == ARGV[2] then
    give_back(id, ARGV[5], tonumber(ARGV[3]), ARGV[4])
    given[#given + 1] = {id, r[3]}
  end
end
for _, id in ipairs(redis.call('ZRANGE', P..'direct:'..ARGV[2], 0, -1)) do
  unsend(id, ARGV[2])
  given[#given + 1] = {id, redis.call('HGET', P..'job:'..id, 'queue')}
end
redis.call('DEL', P..'owned:'..ARGV[2], P..'worker:'..ARGV[2])
redis.call('ZREM', P..'workers', ARGV[2])
return given
"""

# → nil (there is none) | {short fields (name, value…), values of the long ones that a view needs,
#   jobs ahead, ms until it starts}, -1 where that is not known
READ = """
-- id
local short = redis.call('HGETALL', P..'job:'..ARGV[2])
if #short == 0 then return nil end
local long = redis.call('HMGET', P..'doc:'..ARGV[2], VIEW_LONG_FIELDS)
local is_queued = redis.call('HGET', P..'job:'..ARGV[2], 'status') == 'queued'
if not is_queued then return {short, long, -1, -1} end
return {short, long, outlook(ARGV[2])}
"""

# → 'missing' | the terminal status it already had | 'cancelled' | 'requested'
CANCEL = """
-- id
local job = P..'job:'..ARGV[2]
local r = redis.call('HMGET', job, 'status', 'held', 'owner')
if not r[1] then return 'missing' end
if TERMINAL[r[1]] then return r[1] end
if r[2] == '1' then
  redis.call('HSET', job, 'cancel', 1)
  redis.call('PUBLISH', P..'ctl:'..r[3], ARGV[2])
  return 'requested'
end
finish(ARGV[2], 'cancelled', now(), {})
return 'cancelled'
"""

# → 'missing' | 'ok' | the status that does not allow it
RETRY = """
-- id
local id = ARGV[2]
local job, at = P..'job:'..id, now()
local r = redis.call('HMGET', job, 'status', 'finished_at', 'lane', 'queue')
if not r[1] then return 'missing' end
if not TERMINAL[r[1]] or r[1] == 'completed' then return r[1] end
if redis.call('HEXISTS', job, 'unwritten') == 1 then return 'a line of a batch that runs' end
if redis.call('ZREM', P..'dead', id) == 0 then
  log_attempt(id, r[1], r[2], redis.call('HGET', P..'doc:'..id, 'error'))
end
local stage = r[3] == 'media' and 'waiting_media' or 'waiting_engine'
redis.call('HSET', job, 'crashes', 0, 'queued_at', at, 'status', 'queued', 'stage', stage,
           'base', redis.call('HINCRBY', job, 'seq', 1), 'base_at', at, 'base_stage', stage)
redis.call('HDEL', job, 'finished_at', 'expires_at', 'started_at', 'media_at', 'first_token_at',
           'generating_at', 'tokens', 'cancel', 'owner', 'claimed_at')
redis.call('HDEL', P..'doc:'..id, 'error', 'result')
redis.call('HINCRBY', job, 'turn', 1)
redis.call('DEL', P..'ev:'..id)
redis.call('ZREM', P..'retention', id)
enqueue(id, r[4], at, at + GRACE)
return 'ok'
"""

# → 'missing' | 'ok' | the status that does not allow it
ERASE = """
-- id, tombstone_s
local status = redis.call('HGET', P..'job:'..ARGV[2], 'status')
if not status then return 'missing' end
if not TERMINAL[status] then return status end
if redis.call('HEXISTS', P..'job:'..ARGV[2], 'unwritten') == 1 then
  return 'a line of a batch that runs'
end
erase(ARGV[2])
redis.call('SET', P..'gone:'..ARGV[2], 1, 'EX', ARGV[3])
return 'ok'
"""

# → {jobs taken back, expired, timed out, erased, ticket…}: tickets to publish now.
# The cost grows with what is due, never with what exists.
SWEEP = """
-- max crashes, errors (JSON): last crash, this crash, too late, too long; tombstone_s, limit,
-- 1 to act on silent workers as well
local at, limit, judges = now(), tonumber(ARGV[8]), ARGV[9] == '1'
local function due(name, upto)
  return redis.call('ZRANGEBYSCORE', P..name, '-inf', upto, 'LIMIT', 0, limit)
end
local lost = judges and due('leases', at) or {}
for _, id in ipairs(lost) do
  redis.call('ZREM', P..'leases', id)
  if redis.call('HGET', P..'job:'..id, 'held') == '1' then
    give_back(id, ARGV[4], tonumber(ARGV[2]), ARGV[3])
  end
end
local late = due('start_by', at)
for _, id in ipairs(late) do
  redis.call('ZREM', P..'start_by', id)
  -- One that a media worker holds has not started either; the fence stops that worker.
  if redis.call('HGET', P..'job:'..id, 'status') == 'queued' then
    finish(id, 'expired', at, {'error', ARGV[5]})
  end
end
local long = judges and due('run_by', at) or {}
for _, id in ipairs(long) do
  redis.call('ZREM', P..'run_by', id)
  local status = redis.call('HGET', P..'job:'..id, 'status')
  if status and not TERMINAL[status] then finish(id, 'failed', at, {'error', ARGV[6]}) end
end
local old = due('retention', at)
for _, id in ipairs(old) do
  erase(id)
  redis.call('SET', P..'gone:'..id, 1, 'EX', ARGV[7])
end
for _, queue in ipairs(redis.call('SMEMBERS', P..'queues')) do
  local hw = tonumber(redis.call('HGET', P..'hw', queue) or 0) - RETICKET
  reissue(due('queued:'..queue, '('..hw), queue, at)
end
for _, id in ipairs(due('delayed', at)) do
  local r = redis.call('HMGET', P..'job:'..id, 'queue', 'queued_at')
  redis.call('ZREM', P..'delayed', id)
  enqueue(id, r[1], r[2], at)
end
local out = {#lost, #late, #long, #old}
local later = {}
for i, ticket in ipairs(due('outbox', at)) do
  out[#out + 1] = ticket
  later[2 * i - 1], later[2 * i] = at + RETICKET, ticket
end
if #later > 0 then redis.call('ZADD', P..'outbox', unpack(later)) end
count('sweeps', '', '')
for i, label in ipairs({'taken_back', 'expired', 'timed_out', 'erased'}) do
  if out[i] > 0 then count('swept', label, '', out[i]) end
end
if #out > 4 then count('swept', 'tickets', '', #out - 4) end
return out
"""

# → 1 | 0: somebody else has it
LOCK = """
-- name, token, ttl_ms : take it, or keep our own
local key = P..'memo:lock:'..ARGV[2]
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[3] then return 0 end
redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
return 1
"""

# → 1 | 0: no longer ours
RELOCK = """
-- name, token, ttl_ms
local key = P..'memo:lock:'..ARGV[2]
return redis.call('GET', key) == ARGV[3] and redis.call('PEXPIRE', key, ARGV[4]) or 0
"""

# → 1 | 0: it was not ours
UNLOCK = """
-- name, token
local key = P..'memo:lock:'..ARGV[2]
return redis.call('GET', key) == ARGV[3] and redis.call('DEL', key) or 0
"""

# → queues in which a job has waited for longer
STALLED = """
-- age_ms
local out, limit = {}, now() - ARGV[2]
for _, queue in ipairs(redis.call('SMEMBERS', P..'queues')) do
  if #redis.call('ZRANGEBYSCORE', P..'queued:'..queue, '-inf', limit, 'LIMIT', 0, 1) > 0 then
    out[#out + 1] = queue
  end
end
return out
"""

# → number of jobs that will get a new ticket
REISSUE = """
-- queue, age_ms, limit
local at = now()
local old = redis.call('ZRANGEBYSCORE', P..'queued:'..ARGV[2], '-inf', at - ARGV[3],
                       'LIMIT', 0, ARGV[4])
return reissue(old, ARGV[2], at)
"""
