-- Runs with history that was not exported, the longest due first. ARGV: limit, how far ahead of their time (ms), shard prefixes.
-- Reply: of each its member, its cursor (or false), and the revision that the run has now.
local limit, till, found, n = tonumber(ARGV[1]), now + tonumber(ARGV[2]), {}, 0
for i = 3, #ARGV do
  if n >= limit then break end
  local members = call('ZRANGEBYSCORE', ARGV[i] .. 'spans-due', '-inf', till, 'LIMIT', 0, limit - n)
  for k = 1, #members do
    local member = members[k]
    found[#found + 1] = member
    found[#found + 1] = call('HGET', ARGV[i] .. 'spans', member)
    found[#found + 1] = call('GETRANGE', ARGV[i] .. 'r:' .. member, 0, 7)
  end
  n = n + #members
end
return found
