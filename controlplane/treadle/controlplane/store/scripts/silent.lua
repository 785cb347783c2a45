-- Open worker records whose last beat was before a time. ARGV: time in ms, limit a shard, shard prefixes.
-- Reply: the first beat of those that are not silent (or false), the fields of each silent one as pairs. Entries of
-- records that expired are removed.
local found, first = {}, false
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
  local later = call('ZRANGEBYSCORE', beats, ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if later[2] and (not first or tonumber(later[2]) < first) then
    first = tonumber(later[2])
  end
end
return {first, found}
