-- Runs with history that was not exported, the longest due first. ARGV: limit, how far ahead of their time (ms), shard prefixes.
-- Reply: members and cursors (or false) as pairs.
local limit, till, found, n = tonumber(ARGV[1]), now + tonumber(ARGV[2]), {}, 0
for i = 3, #ARGV do
  if n >= limit then break end
  local members = call('ZRANGEBYSCORE', ARGV[i] .. 'spans-due', '-inf', till, 'LIMIT', 0, limit - n)
  for k = 1, #members do
    found[#found + 1] = members[k]
    found[#found + 1] = call('HGET', ARGV[i] .. 'spans', members[k])
  end
  n = n + #members
end
return found
