-- How far a run was exported. ARGV: shard prefix, member, cursor, revision, 1 if there is more, 1 if it is closed.
-- The note goes only if the run is as it was when it was read; what was left behind does not change.
local shard, member, left = ARGV[1], ARGV[2], string.find(ARGV[2], '\31', 1, true)
local whole = ARGV[5] == '0' and (left or call('GETRANGE', shard .. 'r:' .. member, 0, 7) == ARGV[4])
if whole and (left or ARGV[6] == '1') then
  call('HDEL', shard .. 'spans', member)
  call('DEL', shard .. 'left:' .. member)
else
  call('HSET', shard .. 'spans', member, ARGV[3])
end
if whole then
  call('SREM', shard .. 'traces', member)
end
return 0
