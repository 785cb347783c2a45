-- Give up the duty leases that this replica holds. ARGV: replica, shard prefixes.
for i = 2, #ARGV do
  if call('GET', ARGV[i] .. 'duty') == ARGV[1] then
    call('DEL', ARGV[i] .. 'duty')
  end
end
return {}
