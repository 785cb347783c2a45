-- Keep something aside. ARGV: data, key of the list, its bound in bytes, how long in ms. Reply: 1, or 0 when it is full.
-- An entry is the time in 8 bytes, then the data; "<key>:size" is the sum of the data.
local list, size = ARGV[2], ARGV[2] .. ':size'
local oldest = call('LINDEX', list, 0)
while oldest and now - struct_unpack('>d', oldest) >= tonumber(ARGV[4]) do
  call('LPOP', list)
  call('DECRBY', size, #oldest - 8)
  oldest = call('LINDEX', list, 0)
end
if tonumber(call('GET', size) or '0') + #ARGV[1] > tonumber(ARGV[3]) then
  return 0
end
call('RPUSH', list, struct.pack('>d', now) .. ARGV[1])
call('INCRBY', size, #ARGV[1])
call('PEXPIRE', list, ARGV[4])
call('PEXPIRE', size, ARGV[4])
return 1
