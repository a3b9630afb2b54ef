"""Files and batches as Lua, with the prelude of `scripts`: each is one atomic step in Redis."""

# → moment of creation (ms)
ADD_FILE = """
-- id, purpose, life_ms, then field, value…
local id, purpose, at = ARGV[2], ARGV[3], now()
redis.call('HSET', P..'file:'..id, 'purpose', purpose, 'created_at', at,
           'expires_at', at + ARGV[4], unpack(ARGV, 5))
redis.call('ZADD', P..'files', at, id)
redis.call('ZADD', P..'files:'..purpose, at, id)
redis.call('ZADD', P..'file_expiry', at + ARGV[4], id)
return at
"""

# → 1 | 0: it was not there
DROP_FILE = """
-- id, tombstone_s
local id = ARGV[2]
local purpose = redis.call('HGET', P..'file:'..id, 'purpose')
if not purpose then return 0 end
redis.call('DEL', P..'file:'..id)
redis.call('ZREM', P..'files', id)
redis.call('ZREM', P..'files:'..purpose, id)
redis.call('ZREM', P..'file_expiry', id)
redis.call('SET', P..'gone:'..id, 1, 'EX', ARGV[3])
return 1
"""

# → ids that are over by now
EXPIRED_FILES = """
-- limit
return redis.call('ZRANGEBYSCORE', P..'file_expiry', '-inf', now(), 'LIMIT', 0, ARGV[2])
"""

# What only the runner of a batch may write is guarded by its lock, which is `Notes`'.
_MINE = """
local function mine(id, token)
  return redis.call('GET', P..'memo:lock:batch:'..id) == token
end
"""

# → {'ok', id} | {'replay', id, body hash} | {'full', active batches}
CREATE_BATCH = """
-- id, most active, window_ms, idem key or '', body hash, idem_s, then field, value…
local id, at, idem = ARGV[2], now(), ARGV[5]
if redis.call('EXISTS', P..'batch:'..id) == 1 then return {'ok', id} end  -- asked again
if idem ~= '' then
  local old = redis.call('HMGET', P..'idem:'..idem, 'id', 'hash')
  if old[1] then return {'replay', old[1], old[2]} end
end
local active = redis.call('ZCARD', P..'batch_work')
if active >= tonumber(ARGV[3]) then return {'full', active} end
redis.call('HSET', P..'batch:'..id, 'status', 'validating', 'created_at', at,
           'expires_at', at + ARGV[4], 'total', 0, 'completed', 0, 'failed', 0, unpack(ARGV, 8))
redis.call('ZADD', P..'batches', at, id)
redis.call('ZADD', P..'batch_work', at + ARGV[4], id)
if idem ~= '' then
  redis.call('HSET', P..'idem:'..idem, 'id', id, 'hash', ARGV[6])
  redis.call('EXPIRE', P..'idem:'..idem, ARGV[7])
end
return {'ok', id}
"""

# → 'missing' | 'ok' | the status that does not allow it
CANCEL_BATCH = """
-- id
local batch = P..'batch:'..ARGV[2]
local status = redis.call('HGET', batch, 'status')
if not status then return 'missing' end
if status == 'cancelling' or status == 'cancelled' then return 'ok' end
if status ~= 'validating' and status ~= 'in_progress' then return status end
redis.call('HSET', batch, 'status', 'cancelling', 'cancelling_at', now(), 'ending', 'cancelled')
return 'ok'
"""

# → 1 | 0: it is no longer the caller's, or is not being validated any more
BEGIN_BATCH = (
    _MINE
    + """
-- id, token, lines, model
local batch = P..'batch:'..ARGV[2]
if not mine(ARGV[2], ARGV[3]) or redis.call('HGET', batch, 'status') ~= 'validating' then
  return 0
end
redis.call('HSET', batch, 'status', 'in_progress', 'in_progress_at', now(), 'total', ARGV[4],
           'model', ARGV[5])
return 1
"""
)

# → {status, ending or '', jobs open, lines laid out: output, error, 1 if its window is over}
#   | nil: it is no longer the caller's
LOOK_AT_BATCH = (
    _MINE
    + """
-- id, token
local id = ARGV[2]
if not mine(id, ARGV[3]) then return nil end
local r = redis.call('HMGET', P..'batch:'..id, 'status', 'ending', 'expires_at')
return {r[1], r[2] or '', redis.call('SCARD', P..'bopen:'..id),
        redis.call('LLEN', P..'bdone:'..id..':output'),
        redis.call('LLEN', P..'bdone:'..id..':error'), now() >= tonumber(r[3]) and 1 or 0}
"""
)

# → 1 | 0: it is no longer the caller's. What has an ending already keeps it.
CLOSE_BATCH = (
    _MINE
    + """
-- id, token, ending, errors (JSON) or ''
local batch = P..'batch:'..ARGV[2]
if not mine(ARGV[2], ARGV[3]) then return 0 end
local status = redis.call('HGET', batch, 'status')
if status ~= 'validating' and status ~= 'in_progress' then return 1 end
redis.call('HSET', batch, 'ending', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', batch, 'errors', ARGV[5]) end
if status == 'in_progress' or ARGV[4] ~= 'failed' then
  redis.call('HSET', batch, 'status', 'finalizing', 'finalizing_at', now())
end
return 1
"""
)

# → lines taken down as failed: those that never became a job and were not taken down before
FAIL_LINES = (
    _MINE
    + """
-- id, token, tombstone_s, then job id, entry (JSON)…
local count = 0
if not mine(ARGV[2], ARGV[3]) then return -1 end
for i = 5, #ARGV, 2 do
  if redis.call('EXISTS', P..'job:'..ARGV[i], P..'gone:'..ARGV[i]) == 0 then
    redis.call('SET', P..'gone:'..ARGV[i], 1, 'EX', ARGV[4])
    lay_out(ARGV[2], ARGV[i + 1], false)
    count = count + 1
  end
end
return count
"""
)

# → {file id, upload id, number of the next part} | nil: it is no longer the caller's
# Every attempt at a part has a number of its own: one that was not recorded is in no file.
NEXT_PART = (
    _MINE
    + """
-- id, token, file, file id and upload id where there are none yet
local batch, file = P..'batch:'..ARGV[2], ARGV[4]
if not mine(ARGV[2], ARGV[3]) then return nil end
if redis.call('HSETNX', batch, 'upload:'..file, ARGV[6]) == 1 then
  redis.call('HSET', batch, 'file:'..file, ARGV[5])
end
local r = redis.call('HMGET', batch, 'file:'..file, 'upload:'..file)
return {r[1], r[2], redis.call('HINCRBY', batch, 'part:'..file, 1)}
"""
)

# → 1 | 0: it is no longer the caller's. Said again after a lost answer, it is 1 as well.
RECORD_PART = (
    _MINE
    + """
-- id, token, file, number, ETag, bytes, lines in it, prompt tokens, completion tokens,
-- ms for which jobs are kept: completed, others
local id, file, at = ARGV[2], ARGV[4], now()
local batch, done = P..'batch:'..id, P..'bdone:'..id..':'..file
if not mine(id, ARGV[3]) then return 0 end
if redis.call('HGET', batch, 'stored:'..file) == ARGV[5] then return 1 end
redis.call('HSET', batch, 'stored:'..file, ARGV[5])
redis.call('RPUSH', P..'bparts:'..id..':'..file, ARGV[5]..' '..ARGV[6]..' '..ARGV[7])
for _, entry in ipairs(redis.call('LRANGE', done, 0, ARGV[8] - 1)) do
  local job = P..'job:'..entry
  if redis.call('HDEL', job, 'unwritten') == 1 then
    local until_ms = at + (file == 'output' and ARGV[11] or ARGV[12])
    redis.call('HSET', job, 'expires_at', until_ms)
    redis.call('ZADD', P..'retention', until_ms, entry)
  end
end
redis.call('LTRIM', done, ARGV[8], -1)
redis.call('HINCRBY', batch, 'prompt_tokens', ARGV[9])
redis.call('HINCRBY', batch, 'completion_tokens', ARGV[10])
return 1
"""
)

# → the status it has now | nil: it is no longer the caller's. The one place where a batch ends.
END_BATCH = (
    _MINE
    + """
-- id, token, keep_ms, then field, value…
local id, at = ARGV[2], now()
local batch = P..'batch:'..id
if not mine(id, ARGV[3]) then return nil end
local r = redis.call('HMGET', batch, 'status', 'ending')
if r[1] == r[2] then return r[1] end
redis.call('HSET', batch, 'status', r[2], r[2]..'_at', at, unpack(ARGV, 5))
redis.call('ZREM', P..'batch_work', id)
redis.call('ZADD', P..'batch_expiry', at + ARGV[4], id)
redis.call('DEL', P..'bopen:'..id)
for _, file in ipairs({'output', 'error'}) do
  redis.call('DEL', P..'bdone:'..id..':'..file, P..'bparts:'..id..':'..file)
end
owe('batch.'..r[2], 'batch', id, 0, at)
return r[2]
"""
)

# → batches whose record was erased
ERASE_BATCHES = """
-- tombstone_s, limit
local due = redis.call('ZRANGEBYSCORE', P..'batch_expiry', '-inf', now(), 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do
  redis.call('DEL', P..'batch:'..id)
  redis.call('ZREM', P..'batches', id)
  redis.call('ZREM', P..'batch_expiry', id)
  redis.call('SET', P..'gone:'..id, 1, 'EX', ARGV[2])
end
return #due
"""
