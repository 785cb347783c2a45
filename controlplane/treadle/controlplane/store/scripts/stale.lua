-- Outbox entries of one shard that were written at or before a time. ARGV: time in ms, limit, shard prefix.
-- Reply: ids and entries as pairs. The time stands in the first 8 bytes of an entry.
local before, limit, outbox = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] .. 'outbox'
local found, cursor = {}, '0'
repeat
  local reply = call('HSCAN', outbox, cursor, 'COUNT', 100)
  cursor = reply[1]
  for k = 1, #reply[2], 2 do
    local entry = reply[2][k + 1]
    if struct_unpack('>d', entry) <= before then
      found[#found + 1] = reply[2][k]
      found[#found + 1] = string.sub(entry, 9)
    end
  end
until cursor == '0' or #found >= 2 * limit
return found
