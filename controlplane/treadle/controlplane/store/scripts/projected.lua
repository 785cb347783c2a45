-- How far runs were exported. ARGV: the batch; of each run 1 if there is more, 2 if it is closed, 4 if it is to be tried again later;
-- shard prefix, member, cursor, revision. A note goes only if the run is as it was when it was read; what was left behind does
-- not change. See cursors.py for when a note is due; that of a run that was closed since stays due.
local RIPE_MS = 5000
while at <= #blob do
  local flags
  flags, at = struct_unpack('>B', blob, at)
  local parts = take(4)
  local shard, member, left = parts[1], parts[2], string.find(parts[2], '\31', 1, true)
  local due, spans = shard .. 'spans-due', shard .. 'spans'
  local more = flags % 2 == 1
  local whole = not more and (left or call('GETRANGE', shard .. 'r:' .. member, 0, 7) == parts[4])
  if flags >= 4 then
    call('ZADD', due, 'XX', now + RIPE_MS, member)
  else
    if whole and (left or flags == 2) then
      call('HDEL', spans, member)
      if left then
        call('DEL', shard .. 'left:' .. member)
      end
    else
      call('HSET', spans, member, parts[3])
    end
    if whole then
      call('ZREM', due, member)
    elseif not more and tonumber(call('ZSCORE', due, member) or 0) > 0 then
      call('ZADD', due, 'XX', now + RIPE_MS, member)
    end
  end
end
return 0
