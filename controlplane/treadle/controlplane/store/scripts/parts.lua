-- Reads what packing.py wrote, and calls commands with many arguments. Put in front of the other scripts.
local call = redis.call
local unpack, struct_unpack = unpack, struct.unpack
local CHUNK = 200 -- Lua's unpack fails beyond some thousand values

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local blob, at = ARGV[1], 1
local formats = {}

-- Returns the next n parts as a table.
local function take(n)
  local format = formats[n]
  if n <= CHUNK then
    if not format then
      format = '>' .. string.rep('I4c0', n)
      formats[n] = format
    end
    local parts = {struct_unpack(format, blob, at)}
    at = parts[n + 1]
    return parts
  end
  local parts = {}
  for i = 1, n, CHUNK do
    local some = take(math.min(CHUNK, n - i + 1))
    for k = 1, #some - 1 do parts[i + k - 1] = some[k] end
  end
  return parts
end

-- Calls a command with parts i to j behind the key; an even chunk keeps pairs together.
local function variadic(command, key, parts, i, j)
  if j - i < CHUNK then
    return call(command, key, unpack(parts, i, j))
  end
  for k = i, j, CHUNK do
    call(command, key, unpack(parts, k, math.min(k + CHUNK - 1, j)))
  end
end
