# Answers tools/conformance.py: `pack HEX` with that msgpack read and written again,
# `send HEX` with the server's reply to these bytes.

require "ffi-rzmq"
require "msgpack"

$stdout.sync = true
factory = MessagePack::Factory.new
factory.register_type(-1, MessagePack::Timestamp,
                      packer: ->(it) { MessagePack::Timestamp.to_msgpack_ext(it.sec, it.nsec) },
                      unpacker: MessagePack::Timestamp.method(:from_msgpack_ext))
context = ZMQ::Context.new
socket = context.socket(ZMQ::REQ)
socket.setsockopt(ZMQ::LINGER, 0)
socket.connect(ARGV[0])
libzmq = LibZMQ.version.values.join(".")
puts "Ruby #{RUBY_VERSION}, msgpack #{MessagePack::VERSION}, libzmq #{libzmq}"
STDIN.each_line do |line|
  verb, hex = line.split
  bytes = [hex.to_s].pack("H*")
  begin
    if verb == "pack"
      reply = factory.dump(factory.load(bytes, allow_unknown_ext: true))
    else
      socket.send_string(bytes)
      socket.recv_string(reply = +"".b)
    end
    puts reply.unpack1("H*")
  rescue StandardError => e
    puts "! #{e.message}"
  end
end
