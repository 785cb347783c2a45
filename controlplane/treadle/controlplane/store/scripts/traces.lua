-- Runs with history that was not exported. ARGV: limit, shard prefixes. Reply: members and cursors (or false) as pairs.
local limit, found, n = tonumber(ARGV[1]), {}, 0
for i = 2, #ARGV do
  if n >= limit then break end
  local members = call('SRANDMEMBER', ARGV[i] .. 'traces', limit - n)
  for k = 1, #members do
    found[#found + 1] = members[k]
    found[#found + 1] = call('HGET', ARGV[i] .. 'spans', members[k])
  end
  n = n + #members
end
return found
