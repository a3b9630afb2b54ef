"""What receivers are owed, as Lua: OWE belongs to every script, the rest are scripts of their own.

The step that makes a transition also writes the debt, so neither is ever there without the other.
An event is owed to one receiver; its id follows from object, life, type and receiver alone, so that
the same transition, should Redis lose its last second and the job end once more, has the same id.

A *lane* holds what one receiver is owed: an endpoint's id, or the origin of single jobs' URLs.
"""

OWE = """
-- Lanes with something due that nobody looks after; they go back with the script's answer.
local WOKEN = {}
local function wake(lane)
  if redis.call('SET', P..'hook_watch:'..lane, 'ticket', 'PX', HOOK_WATCH_MS, 'NX') then
    WOKEN[#WOKEN + 1] = lane
  end
end
-- where the lane stands among the lanes; a disabled receiver's stands nowhere until it is enabled
local function place(lane)
  local first = redis.call('ZRANGE', P..'hooks:'..lane, 0, 0, 'WITHSCORES')
  if first[2] and redis.call('HEXISTS', P..'endpoint:'..lane, 'disabled') == 0 then
    redis.call('ZADD', P..'hook_lanes', first[2], lane)
  else
    redis.call('ZREM', P..'hook_lanes', lane)
  end
end
local function list_event(event, of, length)
  local key = P..'hook_of:'..of
  redis.call('LPUSH', key, event)
  redis.call('LTRIM', key, 0, length - 1)
  redis.call('EXPIRE', key, HOOK_LIST_S)
end
local function is_endpoint(lane) return lane:sub(1, 3) == 'we_' end
local function owe_to(receiver, lane, type, kind, id, turn, at)
  local what = table.concat({kind, id, turn, type, receiver}, ' ')
  local event = 'msg_'..redis.sha1hex(what):sub(1, 32)
  local key = P..'hook:'..event
  if redis.call('HSETNX', key, 'type', type) == 0 then return event end
  redis.call('HSET', key, 'kind', kind, 'object_id', id, 'turn', turn, 'at', at, 'lane', lane,
             'receiver', receiver, 'state', 'owed', 'tries', 0, 'step', 0)
  redis.call('ZADD', P..'hooks:'..lane, at, event)
  redis.call('ZADD', P..'hooks_owed', at, event)
  list_event(event, id, 100)
  if is_endpoint(lane) then list_event(event, lane, 1000) end
  place(lane)
  wake(lane)
  return event
end
-- Owe an event to whoever wants it: the object's own receiver, {url, lane, filter} or nil, and
-- every endpoint. `kind` and `id` name the object; `turn` counts its lives, 0 where it has but one.
local function owe(type, kind, id, turn, at, own)
  local wanted = ' '..type..' '
  if own and own[1] and own[3]:find(wanted, 1, true) then
    owe_to(own[1], own[2], type, kind, id, turn, at)
  end
  local filters = redis.call('HGETALL', P..'hook_filters')
  for i = 1, #filters, 2 do
    if filters[i + 1]:find(wanted, 1, true) then
      owe_to(filters[i], filters[i], type, kind, id, turn, at)
    end
  end
end
-- what a job's transition is called at its door; nil where it is nobody's business
local function type_of(id, door, what)
  if door == 'batch' then return nil end
  if door ~= 'responses' then return 'job.'..what end
  if what == 'started' then return nil end
  if what == 'expired' then return 'response.failed' end
  if what ~= 'completed' then return 'response.'..what end
  local result = redis.call('HGET', P..'doc:'..id, 'result')
  local is_cut = result and cjson.decode(result).finish_reason == 'length'
  return is_cut and 'response.incomplete' or 'response.completed'
end
-- `what`: started, or how the job ended
local function owe_job(id, what, at)
  local r = redis.call('HMGET', P..'job:'..id, 'door', 'turn', 'is_hooked')
  local type = type_of(id, r[1], what)
  if not type then return end
  local kind = r[1] == 'responses' and 'response' or 'job'
  local own = r[3] and redis.call('HMGET', P..'doc:'..id, 'hook_url', 'hook_lane', 'hook_filter')
  owe(type, kind, id, r[2] or 0, at, own)
end
-- no longer owed; the log stays for a while
local function close_debt(event, lane, state, at, log_s)
  local key = P..'hook:'..event
  redis.call('HSET', key, 'state', state, 'settled_at', at)
  redis.call('EXPIRE', key, log_s)
  redis.call('ZREM', P..'hooks:'..lane, event)
  redis.call('ZREM', P..'hooks_owed', event)
  count('hooks', state, '')
end
"""

# → {{url, secret, old secret while it still signs}, {event, try, step, type, kind, object id, turn,
#    moment, receiver}…}: what is due, each under a lease. The first is empty for single jobs' URLs.
HOOK_CLAIM = """
-- lane, limit, lease_ms, log_s, ms that the clock is ahead
local lane, at = ARGV[2], now() + ARGV[6]
local r = redis.call('HMGET', P..'endpoint:'..lane, 'url', 'secret', 'old_secret', 'old_until',
                     'disabled')
local is_deleted = is_endpoint(lane) and not r[1]
local out = {{r[1], r[2], r[4] and at < tonumber(r[4]) and r[3]}}
if r[5] then return out end
local due = redis.call('ZRANGEBYSCORE', P..'hooks:'..lane, '-inf', at, 'LIMIT', 0, ARGV[3])
for _, event in ipairs(due) do
  local key = P..'hook:'..event
  if is_deleted then
    close_debt(event, lane, 'dropped', at, ARGV[5])
  else
    local try = redis.call('HINCRBY', key, 'tries', 1)
    local step = redis.call('HINCRBY', key, 'step', 1)
    redis.call('ZADD', P..'hooks:'..lane, at + ARGV[4], event)
    out[#out + 1] = {event, try, step, unpack(redis.call('HMGET', key, 'type', 'kind', 'object_id',
                                                         'turn', 'at', 'receiver'))}
  end
end
redis.call('SET', P..'hook_watch:'..lane, 'worker', 'PX', HOOK_WATCH_MS)
place(lane)
return out
"""

# → 1 | 0: something is due
HOOK_LEAVE = """
-- lane, ms that the clock is ahead
local lane = ARGV[2]
local due = redis.call('ZRANGEBYSCORE', P..'hooks:'..lane, '-inf', now() + ARGV[3], 'LIMIT', 0, 1)
if #due > 0 and redis.call('HEXISTS', P..'endpoint:'..lane, 'disabled') == 0 then return 0 end
redis.call('DEL', P..'hook_watch:'..lane)
return 1
"""

# → {{endpoint, url, reason}…} disabled by this. A failure from a stale try changes nothing, for its
# event is somebody else's by now; a delivery is a fact, whoever made it.
HOOK_SETTLE = """
-- log_s, ms that the clock is ahead, then event, try, result, ms to the next try (-1: none), line;
-- and again… The result is delivered, failed or gone (410).
local at, disabled = now() + ARGV[3], {}
local function judge(lane, result)
  local key = P..'endpoint:'..lane
  local r = redis.call('HMGET', key, 'url', 'failing_since', 'failed_at', 'disabled')
  if not r[1] then return end
  if result == 'delivered' then
    redis.call('HSET', key, 'delivered_at', at)
    redis.call('HDEL', key, 'failing_since', 'failed_at')
    return
  end
  local since = tonumber(r[2] or at)
  if r[3] and at - r[3] > HOOK_PAUSE_MS then since = at end
  redis.call('HSET', key, 'failing_since', since, 'failed_at', at)
  local reason = result == 'gone' and 'it answered 410 Gone' or
                 at - since >= HOOK_DISABLE_MS and 'it has taken nothing for days'
  if not reason or r[4] then return end
  redis.call('HSET', key, 'disabled', reason, 'disabled_at', at)
  redis.call('HDEL', P..'hook_filters', lane)
  disabled[#disabled + 1] = {lane, r[1], reason}
end
for i = 4, #ARGV, 5 do
  local event, try, result, wait, line = unpack(ARGV, i, i + 4)
  local key = P..'hook:'..event
  local r = redis.call('HMGET', key, 'state', 'lane', 'tries', 'log')
  if r[1] == 'owed' and (r[3] == try or result == 'delivered') then
    redis.call('HSET', key, 'log', (r[4] and r[4]..'\\n' or '')..line)
    if result == 'delivered' then
      close_debt(event, r[2], 'delivered', at, ARGV[2])
    elseif result == 'gone' or tonumber(wait) < 0 then
      close_debt(event, r[2], 'given_up', at, ARGV[2])
    else
      redis.call('ZADD', P..'hooks:'..r[2], at + wait, event)
      count('hooks', 'failed', '')
    end
    judge(r[2], result)
    place(r[2])
  end
end
return disabled
"""

# → {{lane, ms that it is overdue}…}: what nobody looks after. Gives up what is too old.
HOOK_SWEEP = """
-- log_s, ms that the clock is ahead, limit
local at, limit, out = now() + ARGV[3], ARGV[4], {}
local function first(name, upto)
  return redis.call('ZRANGEBYSCORE', P..name, '-inf', upto, 'WITHSCORES', 'LIMIT', 0, limit)
end
local old = first('hooks_owed', at - HOOK_MAX_AGE_MS)
for i = 1, #old, 2 do
  local lane = redis.call('HGET', P..'hook:'..old[i], 'lane')
  close_debt(old[i], lane, 'given_up', at, ARGV[2])
  place(lane)
end
local lanes = first('hook_lanes', at)
for i = 1, #lanes, 2 do
  if redis.call('SET', P..'hook_watch:'..lanes[i], 'ticket', 'PX', HOOK_WATCH_MS, 'NX') then
    out[#out + 1] = {lanes[i], at - lanes[i + 1]}
  end
end
return out
"""

# → 'missing' | 'deleted' | 'disabled' | 'ok': due now, with its schedule from the start
HOOK_AGAIN = """
-- event, ms that the clock is ahead
local event, at = ARGV[2], now() + ARGV[3]
local key = P..'hook:'..event
local r = redis.call('HMGET', key, 'lane')
if not r[1] then return 'missing' end
local endpoint = redis.call('HMGET', P..'endpoint:'..r[1], 'url', 'disabled')
if is_endpoint(r[1]) and not endpoint[1] then return 'deleted' end
if endpoint[2] then return 'disabled' end
redis.call('HSET', key, 'state', 'owed', 'step', 0)
redis.call('HDEL', key, 'settled_at')
redis.call('PERSIST', key)
redis.call('ZADD', P..'hooks:'..r[1], at, event)
redis.call('ZADD', P..'hooks_owed', at, event)
place(r[1])
wake(r[1])
return 'ok'
"""

# → the event's id | 'deleted' | 'disabled'
HOOK_TEST = """
-- receiver, lane, type, id of the test
local receiver, lane = ARGV[2], ARGV[3]
if is_endpoint(lane) then
  local endpoint = redis.call('HMGET', P..'endpoint:'..lane, 'url', 'disabled')
  if not endpoint[1] then return 'deleted' end
  if endpoint[2] then return 'disabled' end
end
return owe_to(receiver, lane, ARGV[4], 'test', ARGV[5], 0, now())
"""

# → 1 | 0: there are too many
ENDPOINT_ADD = """
-- id, limit, filter, then field, value…
if redis.call('ZCARD', P..'endpoints') >= tonumber(ARGV[3]) then return 0 end
local at = now()
redis.call('HSET', P..'endpoint:'..ARGV[2], 'created_at', at, 'updated_at', at, 'filter', ARGV[4],
           unpack(ARGV, 5))
redis.call('ZADD', P..'endpoints', at, ARGV[2])
redis.call('HSET', P..'hook_filters', ARGV[2], ARGV[4])
return 1
"""

# → 1 | 0: it is not there. What it is owed already follows it to a new URL.
ENDPOINT_CHANGE = """
-- id, filter or '', then field, value…
local id = ARGV[2]
local key = P..'endpoint:'..id
if redis.call('EXISTS', key) == 0 then return 0 end
redis.call('HSET', key, 'updated_at', now(), unpack(ARGV, 4))
if ARGV[3] ~= '' then
  redis.call('HSET', key, 'filter', ARGV[3])
  if redis.call('HEXISTS', key, 'disabled') == 0 then
    redis.call('HSET', P..'hook_filters', id, ARGV[3])
  end
end
return 1
"""

# → 1 | 0: it is not there
ENDPOINT_ROTATE = """
-- id, new secret, ms for which the old one goes on signing
local key, at = P..'endpoint:'..ARGV[2], now()
local secret = redis.call('HGET', key, 'secret')
if not secret then return 0 end
redis.call('HSET', key, 'secret', ARGV[3], 'updated_at', at)
if tonumber(ARGV[4]) > 0 then
  redis.call('HSET', key, 'old_secret', secret, 'old_until', at + ARGV[4])
else
  redis.call('HDEL', key, 'old_secret', 'old_until')
end
return 1
"""

# → 1 | 0: it is not there. What waited for it is due at once.
ENDPOINT_ENABLE = """
-- id
local id = ARGV[2]
local key = P..'endpoint:'..id
local filter = redis.call('HGET', key, 'filter')
if not filter then return 0 end
redis.call('HDEL', key, 'disabled', 'disabled_at', 'failing_since', 'failed_at')
redis.call('HSET', P..'hook_filters', id, filter)
place(id)
wake(id)
return 1
"""

# → 1 | 0: it is not there. What it is owed is dropped as it comes due.
ENDPOINT_DELETE = """
-- id
local id = ARGV[2]
redis.call('HDEL', P..'hook_filters', id)
redis.call('ZREM', P..'endpoints', id)
if redis.call('DEL', P..'endpoint:'..id) == 0 then return 0 end
place(id)
wake(id)
return 1
"""
