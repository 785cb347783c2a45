-- How many entries the outboxes have. ARGV: shard prefixes.
local size = 0
for i = 1, #ARGV do
  size = size + call('HLEN', ARGV[i] .. 'outbox')
end
return size
