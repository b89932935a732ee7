# Compiles each file of a folder, its regular expressions too, and runs none: ruby syntax.rb <folder>.
files = Dir[File.join(ARGV.fetch(0), '**', '*.rb')]
abort 'there are no files' if files.empty?
files.each { |file| RubyVM::InstructionSequence.compile_file(file) }
