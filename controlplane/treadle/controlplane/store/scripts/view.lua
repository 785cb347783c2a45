-- Worker records as lease checks need them. ARGV: pairs of shard prefix and worker id.
-- Reply: the clock, then for each: the record's fields as pairs, last round, back at.
local replies = {now}
for i = 1, #ARGV, 2 do
  local round = call('HMGET', ARGV[i] .. 'round', 'last', 'back')
  replies[#replies + 1] = {call('HGETALL', ARGV[i] .. 'w:' .. ARGV[i + 1]), round[1], round[2]}
end
return replies
