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
