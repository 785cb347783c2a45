-- Open worker records whose last beat was before a time. ARGV: time in ms, limit a shard, shard prefixes.
-- Reply: the fields of each as pairs. Entries of records that expired are removed.
local found = {}
for i = 3, #ARGV do
  local beats = ARGV[i] .. 'beats'
  local silent = call('ZRANGEBYSCORE', beats, '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
  for k = 1, #silent do
    local record = call('HGETALL', ARGV[i] .. 'w:' .. silent[k])
    if #record > 0 then
      found[#found + 1] = record
    else
      call('ZREM', beats, silent[k])
    end
  end
end
return found
