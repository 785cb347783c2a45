-- Timers that are due. ARGV: limit a shard, how many ms ahead of the clock is due too, shard prefixes.
-- Reply: the clock, the first due time behind that (or false), the due time up to which all of them are here
-- (or false: all that are due), members and due times as pairs.
local limit = ARGV[1]
local found, n, first, whole = {}, 0, false, false
local upto = string.format('%.0f', now + tonumber(ARGV[2]))
for i = 3, #ARGV do
  local times = ARGV[i] .. 'times'
  local due = call('ZRANGEBYSCORE', times, '-inf', upto, 'WITHSCORES', 'LIMIT', 0, limit)
  for k = 1, #due do found[n + k] = due[k] end
  n = n + #due
  if #due == 2 * limit then
    local last = tonumber(due[#due])
    whole = whole and math.min(whole, last) or last
  end
  local later = call('ZRANGEBYSCORE', times, '(' .. upto, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if later[2] and (not first or tonumber(later[2]) < first) then
    first = tonumber(later[2])
  end
end
return {now, first, whole, found}
