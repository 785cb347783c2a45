-- Open a worker's session. ARGV: shard prefix, worker id, session id, its send time, record, started at (0: now),
-- expiry in ms. Reply: 1, or 0 where a later session is open. The last list of held tokens, and when it was true, stay.
local key = ARGV[1] .. 'w:' .. ARGV[2]
local sent = call('HGET', key, 'sent')
if sent and tonumber(sent) > tonumber(ARGV[4]) then
  return 0
end
local time = string.format('%.0f', now)
call('HSET', key, 'session', ARGV[3], 'sent', ARGV[4], 'record', ARGV[5], 'closed', '0', 'drained', '0', 'beat', time)
call('HDEL', key, 'lag', 'steps', 'runs', 'draining')
call('HSETNX', key, 'started', ARGV[6] == '0' and time or ARGV[6])
call('HSETNX', key, 'beat_sent', '0')
call('HSETNX', key, 'list', string.rep('\0', 8))
call('PEXPIRE', key, ARGV[7])
call('ZADD', ARGV[1] .. 'beats', time, ARGV[2])
call('ZADD', ARGV[1] .. 'workers', time, ARGV[2])
return 1
