-- Close a worker's record. ARGV: shard prefix, worker id, session id, drained (0, 1).
-- Reply: the record's fields as pairs, or false where it names another session.
local key = ARGV[1] .. 'w:' .. ARGV[2]
local stored = call('HMGET', key, 'session', 'closed')
if stored[1] ~= ARGV[3] then
  return false
end
if stored[2] == '0' then
  call('HSET', key, 'closed', string.format('%.0f', now), 'drained', ARGV[4])
  call('ZREM', ARGV[1] .. 'beats', ARGV[2])
end
return call('HGETALL', key)
