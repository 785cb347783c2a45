-- Take or extend duty leases. ARGV: replica, ttl in ms, longest gap in ms, shard prefixes.
-- Reply, for each: last round and back at, or false where somebody else holds it.
local replica, ttl, gap = ARGV[1], ARGV[2], tonumber(ARGV[3])
local replies = {}
for i = 4, #ARGV do
  local shard = ARGV[i]
  local owner = call('GET', shard .. 'duty')
  if owner and owner ~= replica then
    replies[#replies + 1] = false
  else
    call('SET', shard .. 'duty', replica, 'PX', ttl)
    local round = call('HMGET', shard .. 'round', 'last', 'back')
    local back = round[2]
    if not round[1] or now - tonumber(round[1]) > gap then
      back = string.format('%.0f', now)
    end
    call('HSET', shard .. 'round', 'last', string.format('%.0f', now), 'back', back)
    replies[#replies + 1] = {now, tonumber(back)}
  end
end
return replies
