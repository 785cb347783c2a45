-- A batch of beats. ARGV: the batch, expiry in ms. Reply: one digit a beat (0 noted, 1 ignored, 2 noted, list wanted).
-- `beat_sent` moves only with the list it speaks of: see worker_rules.py.
local time, expiry = string.format('%.0f', now), ARGV[2]
local answers = {}

local function beat()
  local sent, has_list, lag, steps, runs, draining
  sent, has_list, lag, steps, runs, draining, at = struct_unpack('>dBi8i8i8B', blob, at)
  local parts = take(6)
  local key, shard = parts[1], parts[2]
  local stored = call('HMGET', key, 'session', 'closed', 'beat_sent', 'list')
  if stored[1] ~= parts[4] or stored[2] ~= '0' or tonumber(stored[3]) > sent then
    return '1'
  end
  call('HSET', key, 'beat', time, 'lag', lag, 'steps', steps, 'runs', runs, 'draining', draining)
  call('PEXPIRE', key, expiry)
  call('ZADD', shard .. 'beats', time, parts[3])
  if has_list == 1 then
    call('HSET', key, 'beat_sent', string.format('%.0f', sent), 'list', parts[5], 'held', parts[6])
  elseif stored[4] == parts[5] then
    call('HSET', key, 'beat_sent', string.format('%.0f', sent))
  else
    return '2'
  end
  return '0'
end

while at <= #blob do
  answers[#answers + 1] = beat()
end
return table.concat(answers)
