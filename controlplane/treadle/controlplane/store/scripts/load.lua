-- A batch of wants. Reply, for each: revision and head in one, tombstone, event, fields as pairs, events, length of the history,
-- number of all fields; false where nothing is.
local PAGE_EVENTS, PAGE_BYTES, READ = 200, 1048576, 32

local NOTES = {['s:'] = true, ['a:'] = true, ['d:'] = true}

-- At most so many, notes last: a run may have thousands of them, and what must be swept stands between them.
local function all_fields(fields, limit)
  local found, notes, seen, count, cursor = {}, {}, {}, 0, '0'
  repeat
    local reply = call('HSCAN', fields, cursor, 'COUNT', 200)
    cursor = reply[1]
    local some = reply[2]
    for k = 1, #some, 2 do
      local name = some[k]
      if NOTES[string.sub(name, 1, 2)] then
        if #notes < limit and not seen[name] then
          seen[name] = true
          notes[#notes + 1] = {name, some[k + 1]}
        end
      elseif count < limit and not seen[name] then
        seen[name] = true
        count = count + 1
        found[2 * count - 1], found[2 * count] = name, some[k + 1]
      end
    end
  until cursor == '0' or count >= limit
  for k = 1, math.min(#notes, limit - count) do
    found[#found + 1], found[#found + 2] = notes[k][1], notes[k][2]
  end
  return found
end

local function named_fields(fields, parts, n)
  local found = {}
  for k = 3, n + 2, CHUNK do
    local last = math.min(k + CHUNK - 1, n + 2)
    local values = call('HMGET', fields, unpack(parts, k, last))
    for m = 1, last - k + 1 do
      if values[m] then
        found[#found + 1] = parts[k + m - 1]
        found[#found + 1] = values[m]
      end
    end
  end
  return found
end

local function page(history, after)
  local found, size = {}, 0
  for from = after, after + PAGE_EVENTS - 1, READ do
    local some = call('LRANGE', history, from, math.min(from + READ, after + PAGE_EVENTS) - 1)
    for k = 1, #some do
      size = size + #some[k]
      if #found > 0 and size > PAGE_BYTES then
        return found
      end
      found[#found + 1] = some[k]
    end
    if #some < READ then
      return found
    end
  end
  return found
end

local replies = {}
while at <= #blob do
  local flags, limit, event_at, after, n
  flags, limit, event_at, after, n, at = struct_unpack('>BI4I4i8H', blob, at)
  local parts = take(2 + n)
  local shard, name = parts[1], parts[2]
  local fields, history = shard .. 'f:' .. name, shard .. 'l:' .. name
  local stored = call('GET', shard .. 'r:' .. name)
  if not stored then
    replies[#replies + 1] = {false, call('GET', shard .. 't:' .. name), false, {}, {}, 0, 0}
  else
    replies[#replies + 1] = {
      stored,
      false,
      event_at > 0 and call('LINDEX', history, event_at - 1),
      flags == 1 and all_fields(fields, limit) or named_fields(fields, parts, n),
      after >= 0 and page(history, after) or {},
      call('LLEN', history),
      call('HLEN', fields),
    }
  end
end
return replies
