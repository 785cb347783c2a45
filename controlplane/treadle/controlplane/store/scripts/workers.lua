-- All worker records. ARGV: shard prefixes. Reply: the fields of each as pairs. Expired ones leave the list.
local found = {}
for i = 1, #ARGV do
  local known = call('ZRANGE', ARGV[i] .. 'workers', 0, -1)
  for k = 1, #known do
    local record = call('HGETALL', ARGV[i] .. 'w:' .. known[k])
    if #record > 0 then
      found[#found + 1] = record
    else
      call('ZREM', ARGV[i] .. 'workers', known[k])
    end
  end
end
return found
