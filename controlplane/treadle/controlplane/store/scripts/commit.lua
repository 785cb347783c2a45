-- A batch of changes, each all or nothing; at most one a run. ARGV: the batch, the channel, the sender, how many of the
-- channel's subscribers are the sender itself (-1: publish in any case).
-- Reply: the clock, one digit a change (0 written, 1 another revision, 2 too early). All that may refuse is looked at
-- before the first write. What stands of all runs is read by one command, and all heads are written by one.
local LEFT_MS, RIPE_MS, FIRST = 86400000, 5000, 9007199254740991
local channel, sender, mine = ARGV[2], ARGV[3], tonumber(ARGV[4])
local stamp = struct.pack('>d', now)
local outcomes, hints, heads = {}, {}, {}

local count
count, at = struct_unpack('>I4', blob, at)
local runs = take(count)
local stored = {}
for i = 1, count, CHUNK do
  local some = call('MGET', unpack(runs, i, math.min(i + CHUNK - 1, count)))
  for k = 1, #some do stored[i + k - 1] = some[k] end
end

local function write_times(shard, parts, i, timers_set, timers_del, index_add, index_del)
  if timers_del > 0 then
    local from = i + timers_set
    variadic('ZREM', shard .. 'times', parts, from, from + timers_del - 1)
  end
  if timers_set > 0 then
    variadic('ZADD', shard .. 'times', parts, i, i + timers_set - 1)
  end
  i = i + timers_set + timers_del
  for k = i + index_add, i + index_add + index_del - 1, 2 do
    call('ZREM', shard .. 'i:' .. parts[k], parts[k + 1])
  end
  for k = i, i + index_add - 1, 3 do
    call('ZADD', shard .. 'i:' .. parts[k], parts[k + 1], parts[k + 2])
  end
end

-- Keeps a history that goes, behind its head, if it was not exported: see cursors.py.
local function leave(shard, name, revision, head)
  local traces, spans, member = shard .. 'spans-due', shard .. 'spans', name .. '\31' .. revision
  local history, left = shard .. 'l:' .. name, shard .. 'left:' .. member
  local cursor = call('HGET', spans, name)
  if call('ZREM', traces, name) == 1 and call('EXISTS', history) == 1 then
    call('RENAME', history, left)
    call('LPUSH', left, head)
    call('PEXPIRE', left, LEFT_MS)
    call('ZADD', traces, now - FIRST, member)
    if cursor then
      call('HSET', spans, member, cursor)
    end
  end
  if cursor then
    call('HDEL', spans, name)
  end
end

-- Names and values of those fields that are there: with a restart, what the deleted ones stand for are fields to keep.
local function pairs_of(fields, parts, from, to)
  local found = {}
  for i = from, to, CHUNK do
    local last = math.min(i + CHUNK - 1, to)
    local values = call('HMGET', fields, unpack(parts, i, last))
    for k = i, last do
      if values[k - i + 1] then
        found[#found + 1] = parts[k]
        found[#found + 1] = values[k - i + 1]
      end
    end
  end
  return found
end

local function change(run, old)
  local flags, not_before, set, del, events, outbox_add, outbox_del, timers_set, timers_del, index_add, index_del
  flags, not_before, set, del, events, outbox_add, outbox_del, timers_set, timers_del, index_add, index_del, at =
    struct_unpack('>BdHHHHHHHHH', blob, at)
  local parts = take(5 + set + del + events + outbox_add + outbox_del
    + timers_set + timers_del + index_add + index_del)
  local shard, name, expect = parts[1], parts[2], parts[3]
  if (old and string.sub(old, 1, 8) or '') ~= expect then
    return '1'
  end
  local due = now + RIPE_MS
  if flags >= 16 then -- nothing more is to be waited for
    due = now - FIRST
    flags = flags - 16
  end
  if flags >= 8 then -- nobody looked whether a tombstone is there
    if call('EXISTS', shard .. 't:' .. name) == 1 then
      return '1'
    end
    flags = flags - 8
  end
  local fields, history = shard .. 'f:' .. name, shard .. 'l:' .. name
  local i = 6
  local traced = flags >= 4 -- 1: started again, 2: deleted, and 4 with either or none
  if traced then
    flags = flags - 4
  end
  if flags ~= 2 and now < not_before then
    return '2'
  end
  local kept
  if flags > 0 then
    if flags == 1 and del > 0 then
      kept = pairs_of(fields, parts, i + set, i + set + del - 1)
    end
    leave(shard, name, expect, old and string.sub(old, 9))
    call('DEL', run, fields, history)
  end
  if flags == 2 then
    if tonumber(parts[6]) > 0 then
      call('SET', shard .. 't:' .. name, parts[5], 'PX', parts[6])
    end
    write_times(shard, parts, 7, timers_set, timers_del, index_add, index_del)
    return '0'
  end
  heads[#heads + 1] = run
  heads[#heads + 1] = parts[5]
  if kept then
    if #kept > 0 then
      variadic('HSET', fields, kept, 1, #kept)
    end
  elseif del > 0 then
    variadic('HDEL', fields, parts, i + set, i + set + del - 1)
  end
  if set > 0 then
    variadic('HSET', fields, parts, i, i + set - 1)
  end
  i = i + set + del
  if events > 0 then
    variadic('RPUSH', history, parts, i, i + events - 1)
    if traced then
      call('ZADD', shard .. 'spans-due', 'LT', due, name)
    end
  end
  i = i + events
  if outbox_del > 0 then
    variadic('HDEL', shard .. 'outbox', parts, i + outbox_add, i + outbox_add + outbox_del - 1)
  end
  if outbox_add > 0 then
    for k = i + 1, i + outbox_add - 1, 2 do parts[k] = stamp .. parts[k] end
    variadic('HSET', shard .. 'outbox', parts, i, i + outbox_add - 1)
  end
  write_times(shard, parts, i + outbox_add + outbox_del, timers_set, timers_del, index_add, index_del)
  if parts[4] ~= '' then
    hints[#hints + 1] = parts[4]
  end
  return '0'
end

for i = 1, count do
  outcomes[i] = change(runs[i], stored[i])
end
for i = 1, #heads, CHUNK do
  call('MSET', unpack(heads, i, math.min(i + CHUNK - 1, #heads)))
end
if #hints > 0 and (mine < 0 or call('PUBSUB', 'NUMSUB', channel)[2] > mine) then -- a msgpack array of them
  call('PUBLISH', channel, sender .. '\221' .. struct.pack('>I4', #hints) .. table.concat(hints))
end
return {now, table.concat(outcomes)}
